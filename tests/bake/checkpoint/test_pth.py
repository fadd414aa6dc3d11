"""PyTorch's files: what torch wrote is what we say, and nothing hostile says more."""

import contextlib
import io
import zipfile

import numpy as np
import pytest

from bake.checkpoint.arrays import array
from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.pth import parse
from bake.checkpoint.source import Bytes, Seekable
from bake.errors import Malformed, Unsupported
from tests.bake.checkpoint.pickles import (
    archive,
    fixture,
    lengths,
    mapping,
    storage,
    text,
    view,
    whole,
)

BAD = (Malformed, Unsupported)
FILES = ("plain.pth", "legacy.pth", "big.pth")


def arrays(source):
    return {tensor.name: array(source, tensor) for tensor in parse(source).tensors}


def counted(*shape):
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("name", FILES)
def test_fixtures_are_what_their_script_says(name):
    source = Bytes(fixture(name))
    got = arrays(source)
    weight = counted(4, 6)
    expected = {
        "a.weight": weight,
        "a.transposed": weight.T,
        "a.columns": weight[1:3, 2:5],
        "a.expanded": np.broadcast_to(counted(3, 1), (3, 5)),
        "b.half": (counted(5).view(np.uint32) >> 16).astype(np.uint16),
        "b.scalar": np.array(7),
        "b.empty": np.empty((0, 3), np.float32),
        "b.truths": np.array([True, False]),
        "b.bytes": np.arange(9, dtype=np.uint16),
    }
    assert list(got) == list(expected)
    for key, numbers in expected.items():
        np.testing.assert_array_equal(got[key], numbers, strict=True)
    dtypes = {tensor.name: tensor.dtype for tensor in parse(source).tensors}
    assert dtypes["b.half"] == "BF16"
    assert dtypes["b.truths"] == "BOOL"


def test_metadata_says_what_else_there_is():
    assert parse(Bytes(fixture("legacy.pth"))).metadata == {
        "epoch": 3,
        "args.lr": 0.5,
        "args.betas": [0.9, 0.99],
        "pth.form": "legacy",
        "pth.taken_from": "state_dict",
        "pth.shared": [["a.weight", "a.transposed", "a.columns"]],
    }
    metadata = parse(Bytes(fixture("big.pth"))).metadata
    assert metadata["pth.byteorder"] == "big"
    assert metadata["pth.version"] == "3"


@pytest.mark.parametrize("name", FILES)
def test_any_source_gives_the_same(name):
    raw = fixture(name)
    assert parse(Seekable(io.BytesIO(raw), "bytes")) == parse(Bytes(raw))


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_refused(name):
    raw = fixture(name)
    for end in range(len(raw)):
        with pytest.raises(BAD):
            parse(Bytes(raw[:end]))


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_does_nothing_else_than_fail(name):
    raw = fixture(name)
    for at in range(len(raw)):
        mask = (0x01, 0x10, 0x80, 0xFF)[at % 4]
        source = Bytes(raw[:at] + bytes([raw[at] ^ mask]) + raw[at + 1 :])
        with contextlib.suppress(*BAD):
            for tensor in parse(source).tensors:
                array(source, tensor)


def only(pickle, **options):
    source = archive(pickle, **options)
    (tensor,) = parse(source).tensors
    return tensor, array(source, tensor)


def test_an_archive_by_hand_is_read():
    tensor, numbers = only(mapping("w", view()))
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.strides) == ("w", "F32", (24,), None)
    assert numbers.shape == (24,)


@pytest.mark.parametrize(
    "hostile",
    [
        view(shape=lengths(25)),
        view(offset=whole(1)),
        view(offset=whole(2**64)),
        view(offset=whole(-1)),
        view(shape=lengths(-1)),
        view(shape=lengths(2**62), strides=lengths(4)),
        view(shape=lengths(2**62, 2**62), strides=lengths(0, 0)),
        view(shape=lengths(0, 2**63), strides=lengths(1, 1)),
        view(shape=lengths(2, 2), strides=lengths(-1, 1)),
        view(shape=lengths(2, 2), strides=lengths(2**63, 1)),
        view(shape=lengths(3), strides=lengths(12)),
        view(shape=lengths(2, 2), strides=lengths(1)),
        view(shape=lengths(*[1] * 9), strides=lengths(*[1] * 9)),
        view(shape=lengths(2**40), strides=lengths(0)),
        view(shape=b"N"),
        view(shape=b"]"),
        view(shape=b"(\x88t"),
        view(shape=b"(G\x3f\xf0\0\0\0\0\0\0t"),
        view(offset=b"\x88"),
        view(offset=b"N"),
        view(of=b"N"),
        view(of=view()),
        view(of=storage(key=b"N")),
        view(of=storage(key=text("1"))),
        view(of=storage(key=text("../data/0"))),
        view(of=storage(numel=whole(23))),
        view(of=storage(numel=whole(25))),
        view(of=storage(numel=whole(-24))),
        view(of=storage(numel=whole(2**62))),
        view(of=storage(numel=b"N")),
        view(of=storage(kind=b"DoubleStorage")),
    ],
)
def test_views_outside_their_storage_are_refused(hostile):
    with pytest.raises(BAD):
        parse(archive(mapping("w", hostile)))


DEEP = b")" + b"\x85" * 100_000


@pytest.mark.parametrize(
    "hostile",
    [
        view(shape=DEEP),
        view(strides=DEEP),
        view(offset=DEEP),
        view(of=DEEP),
        view(shape=b"(" + DEEP + b"t"),
        view(of=storage(key=DEEP)),
        view(of=storage(numel=DEEP)),
    ],
)
def test_depth_in_a_view_is_no_recursion(hostile):
    with pytest.raises(BAD):
        parse(archive(mapping("w", hostile)))


def test_views_of_stride_0_cost_no_bytes():
    many = view(shape=lengths(2**20), strides=lengths(0))
    tensor, numbers = only(mapping("w", many))
    assert (tensor.count, tensor.nbytes, numbers.strides) == (2**20, 4, (0,))
    with pytest.raises(Malformed, match="more than is allowed"):
        parse(archive(mapping("w", many)), ParseLimits(allocation_bytes=2**20))


def test_numbers_under_two_names_have_one_place():
    contents = parse(archive(mapping("a", view(), "b", view())))
    assert contents.metadata["pth.shared"] == [["a", "b"]]
    assert len({tensor.offset for tensor in contents.tensors}) == 1


def test_a_name_stands_once():
    with pytest.raises(Malformed, match="two tensors are named 'a'"):
        parse(archive(mapping("a", view(), "a", view())))
    with pytest.raises(Malformed, match=r"two tensors are named 'a\.b'"):
        parse(archive(mapping("a.b", view(), "a", mapping("b", view()))))


@pytest.mark.parametrize(
    ("pickle", "names", "taken"),
    [
        (mapping("a", view(), "b", mapping("c", view())), ["a", "b.c"], None),
        (mapping("net", mapping("a", view()), "epoch", whole(1)), ["a"], "net"),
        (mapping("model", mapping("a", view()), "ema", mapping("a", view())), ["a"], "model"),
        (mapping("x", mapping("a", view()), "y", mapping("a", view())), ["x.a", "y.a"], None),
        (mapping("x", mapping("y", mapping("a", view()))), ["x.y.a"], None),
        (b"](" + view() + view() + b"e", ["0", "1"], None),
        (view(), ["tensor"], None),
        (b"ctorch._utils\n_rebuild_parameter\n(" + view() + b"\x88NtR", ["tensor"], None),
    ],
)
def test_the_state_dict_is_found(pickle, names, taken):
    contents = parse(archive(pickle))
    assert [tensor.name for tensor in contents.tensors] == names
    assert contents.metadata.get("pth.taken_from") == taken


def test_what_is_not_taken_is_counted():
    long = b"](" + whole(1) * 100 + b"e"
    inner = mapping("model", mapping("a", view()), "ema", mapping("b", view()), "losses", long)
    metadata = parse(archive(inner)).metadata
    assert metadata["pth.other_tensors"] == 1
    assert metadata["pth.left_out"] == 1


def test_limits_are_asked():
    two = mapping("a", view(), "b", view())
    for limits in (
        ParseLimits(tensors=1),
        ParseLimits(items=20),
        ParseLimits(header_bytes=100),
        ParseLimits(tensor_bytes=95),
        ParseLimits(dimension=23),
        ParseLimits(rank=0),
        ParseLimits(name_bytes=0),
    ):
        with pytest.raises(Malformed):
            parse(archive(two), limits)
    assert parse(archive(two), DEFAULT).tensors


def deflated(*names):
    made, plain = io.BytesIO(), io.BytesIO(bytes(archive(mapping("w", view())).view))
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            kind = zipfile.ZIP_DEFLATED if name in names else zipfile.ZIP_STORED
            new.writestr(zipfile.ZipInfo(name), old.read(name), kind)
    return Bytes(made.getvalue())


def test_a_deflated_pickle_is_read_and_deflated_storages_are_told():
    assert parse(deflated("a/data.pkl")).tensors
    with pytest.raises(Unsupported, match="compressed storages"):
        parse(deflated("a/data/0"))


@pytest.mark.parametrize(
    ("records", "word"),
    [
        ((("constants.pkl", b""),), "TorchScript"),
        ((("byteorder", b"middle"),), "byteorder is 'middle'"),
        ((("byteorder", b"b" * 1000),), "of at most 64"),
    ],
)
def test_other_archives_are_told(records, word):
    with pytest.raises(BAD, match=word):
        parse(archive(mapping("w", view()), records=records))


def test_two_pickles_are_no_one():
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for folder in "ab":
            file.writestr(f"{folder}/data.pkl", b"\x80\x02}.")
    with pytest.raises(Malformed, match="2 folders"):
        parse(Bytes(made.getvalue()))


def test_a_pickle_that_goes_on_is_refused():
    with pytest.raises(Malformed, match="goes on after"):
        parse(archive(mapping("w", view()) + b".N"))


def test_other_forms_are_told_by_name():
    tar = bytearray(512)
    tar[257:262] = b"ustar"
    for raw, word in ((bytes(tar), "tar form"), (b"\x80\x02}.", "none that torch.save wrote")):
        with pytest.raises(Unsupported, match=word):
            parse(Bytes(raw))
    with pytest.raises(Malformed, match="neither of torch"):
        parse(Bytes(b"GGUF"))


def legacy(pickle, keys=None, storages=b"", protocol=1001):
    magic = b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
    said = b"\x80\x02M" + protocol.to_bytes(2, "little") + b".\x80\x02}."
    keys = b"](" + text("0") + b"e" if keys is None else keys
    return Bytes(magic + said + b"\x80\x02" + pickle + b".\x80\x02" + keys + b"." + storages)


HELD = (24).to_bytes(8, "little") + bytes(96)


def test_the_older_form_by_hand_is_read():
    (tensor,) = parse(legacy(mapping("w", view()), storages=HELD)).tensors
    assert tensor.shape == (24,)
    # A pickle longer than what is read at first.
    long = mapping("w", view(), "text", text("x" * 200_000))
    assert parse(legacy(long, storages=HELD)).tensors[0].shape == (24,)


@pytest.mark.parametrize(
    "lie",
    [
        {"keys": b"N"},
        {"keys": b"]"},
        {"keys": b"](" + text("0") + text("0") + b"e"},
        {"keys": b"](" + text("0") + text("1") + b"e"},
        {"keys": b"]("+ DEEP + b"e"},
        {"storages": b""},
        {"storages": (23).to_bytes(8, "little") + bytes(96)},
        {"storages": (2**63).to_bytes(8, "little") + bytes(96)},
        {"storages": HELD[:-1]},
        {"storages": HELD + b"\0"},
        {"protocol": 1002},
        {"pickle": mapping("w", view(), "v", view(of=storage(numel=whole(23))))},
        {"pickle": mapping("w", view(of=storage(key=b"N")))},
        {"pickle": mapping("w", view(of=b"(" + text("storage") + b"ctorch\nFloatStorage\n" + (
            text("0") + text("cpu") + whole(24) + b"(" + text("1") + whole(0) + whole(24) + b"ttQ"
        )))},
    ],
)  # fmt: skip
def test_the_older_form_lying_is_refused(lie):
    told = {"pickle": mapping("w", view()), "storages": HELD} | lie
    with pytest.raises(BAD):
        parse(legacy(**told))


# What torch itself writes and reads.

TYPED = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")
EIGHTS = ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")
# Without a storage of their own: torch 2.13 writes these in the older form, and cannot read them.
UNTYPED = ("uint16", "uint32", "uint64", *(f"float8_{name}" for name in EIGHTS))


def as_bits(tensor):
    """A tensor as ``array`` gives it."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype in [getattr(torch, f"float8_{name}") for name in EIGHTS]:
        return tensor.contiguous().view(torch.uint8).numpy()
    if tensor.dtype is torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy()
    return tensor.numpy()


def check(path, value, forms=(True, False)):
    """Written in both forms, each tensor is what torch reads."""
    import torch

    for new in forms:
        torch.save(value, path, _use_new_zipfile_serialization=new)
        loaded = torch.load(path, weights_only=True)
        source = Bytes(path.read_bytes())
        tensors = parse(source).tensors
        assert [tensor.name for tensor in tensors] == list(loaded)
        for tensor in tensors:
            np.testing.assert_array_equal(
                array(source, tensor), as_bits(loaded[tensor.name]), strict=True
            )


@pytest.mark.torch
def test_all_types_equal_torchs(tmp_path):
    import torch

    base = torch.arange(-12, 12, dtype=torch.float32).reshape(4, 6)
    typed = {name: base.to(getattr(torch, name)) for name in TYPED if name != "uint8"}
    typed |= {"uint8": base.abs().to(torch.uint8), "bool": base > 0}
    check(tmp_path / "a.pth", typed)
    untyped = {name: base.abs().to(getattr(torch, name)) for name in UNTYPED}
    check(tmp_path / "a.pth", untyped, forms=(True,))


@pytest.mark.torch
def test_views_equal_torchs(tmp_path):
    import torch

    base = torch.randn(4, 6, 8)
    value = {
        "base": base,
        "transposed": base.transpose(0, 2),
        "permuted": base.permute(1, 2, 0)[::2],
        "inner": base[1:, 2:5, ::3],
        "row": base[2],
        "one": base[1, 2, 3],
        "none": base[:, 3:3],
        "expanded": base[:1].expand(5, 6, 8),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0),
        "diagonal": torch.diagonal(base, 0, 0, 1),
        "overlapping": base.flatten().as_strided((5, 5), (1, 1)),
        "parameter": torch.nn.Parameter(base[0]),
        "channels": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    check(tmp_path / "a.pth", value)


@pytest.mark.torch
def test_state_dicts_of_modules_equal_torchs(tmp_path):
    import torch

    layers = [torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Embedding(5, 4)]
    check(tmp_path / "a.pth", torch.nn.Sequential(*layers).state_dict())


@pytest.mark.torch
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(tmp_path, protocol):
    import torch

    path = tmp_path / "a.pth"
    value = {"w": torch.arange(6).reshape(2, 3).T, "h": torch.zeros(2, dtype=torch.uint16)}
    torch.save({"model": value, "size": torch.Size([1, 2])}, path, pickle_protocol=protocol)
    source = Bytes(path.read_bytes())
    np.testing.assert_array_equal(arrays(source)["w"], value["w"].numpy())
    assert parse(source).metadata["size"] == [1, 2]


@pytest.mark.torch
def test_optimizers_and_attributes_are_read(tmp_path):
    import torch

    path = tmp_path / "a.pth"
    state = {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}, 1: {"step": 2}}
    optimizer = {"state": state, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    marked = torch.ones(3)
    marked.note = "kept"
    value = {"model": {"w": torch.ones(2), "m": marked}, "optimizer": optimizer}
    torch.save({**value, "device": torch.device("cpu")}, path)
    contents = parse(Bytes(path.read_bytes()))
    assert [tensor.name for tensor in contents.tensors] == ["w", "m"]
    assert contents.metadata["pth.other_tensors"] == 2
    assert contents.metadata["optimizer.param_groups.0.lr"] == 0.1
    assert contents.metadata["device"] == "cpu"


NEGATED = text("neg") + b"\x88"


def rebuilt(version, metadata):
    """A tensor with everything that torch can say of it."""
    kind = b"ctorch\nfloat32\n" if version == "_v3" else b""
    parts = storage() + whole(0) + lengths(24) + lengths(1) + b"\x89N" + kind
    return f"ctorch._utils\n_rebuild_tensor{version}\n".encode() + b"(" + parts + metadata + b"tR"


@pytest.mark.parametrize("version", ["_v2", "_v3"])
def test_a_view_that_is_not_as_it_is_stored_is_refused(version):
    for metadata in (b"}(" + NEGATED + b"u", b"}" + NEGATED + b"s", b"K\x01", b"](NNe", b"\x88"):
        with pytest.raises(Unsupported, match="not as it is stored"):
            parse(archive(mapping("w", rebuilt(version, metadata))))
    for metadata in (b"", b"N", b"}"):
        assert len(parse(archive(mapping("w", rebuilt(version, metadata)))).tensors) == 1
    with pytest.raises(Malformed, match="takes other arguments"):
        parse(archive(mapping("w", rebuilt(version, b"NN"))))


@pytest.mark.torch
@pytest.mark.parametrize("archived", [True, False])
def test_torchs_negative_views_are_refused_by_name(tmp_path, archived):
    import torch

    path = tmp_path / "a.pth"
    for value in (torch._neg_view(torch.ones(3)), torch.ones(3, dtype=torch.complex64).conj()):
        torch.save({"w": value}, path, _use_new_zipfile_serialization=archived)
        with pytest.raises(Unsupported, match=r"not as it is stored \((neg|conj)\)"):
            parse(Bytes(path.read_bytes()))


@pytest.mark.torch
def test_what_torch_has_and_we_have_not_is_told_by_name(tmp_path):
    import torch

    path = tmp_path / "a.pth"
    torch.save({"w": torch.zeros(2, dtype=torch.complex64)}, path)
    source = Bytes(path.read_bytes())
    (tensor,) = parse(source).tensors
    assert tensor.dtype == "C64"
    with pytest.raises(Unsupported, match="C64"):
        array(source, tensor)
    for value, word in (
        (torch.eye(2).to_sparse(), "_rebuild_sparse_tensor is a sparse tensor"),
        (torch.empty(2, device="meta"), "_rebuild_meta_tensor_no_storage is a tensor without"),
        (torch.nn.Linear(1, 1), "Linear is not allowed"),
    ):
        torch.save({"w": value}, path)
        with pytest.raises(Unsupported, match=word):
            parse(Bytes(path.read_bytes()))


@pytest.mark.torch
def test_storages_alone_are_no_tensors(tmp_path):
    import torch

    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(2).untyped_storage(), "v": torch.ones(3)}, path)
    contents = parse(Bytes(path.read_bytes()))
    assert [tensor.name for tensor in contents.tensors] == ["v"]
    assert contents.metadata["pth.left_out"] == 1
