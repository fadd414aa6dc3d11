"""What measures reconstruction measures what it says; how fast is for records."""

import hashlib
from pathlib import Path

import pytest
from rich.console import Console

from bake.weights.pack import pack
from blob.blob import Blob
from blob.recipe import Recipe
from blob.store import Store
from scripts import measure_reconstruct as script
from scripts import quiet

SHAPE = script.Shape(
    blocks=2, hidden=256, intermediate=512, heads=2, kv_heads=1, head=128, vocabulary=512
)


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> Blob:
    folder = tmp_path_factory.mktemp("blob")
    script.synthesize(folder / "checkpoint", SHAPE)
    pack(folder / "checkpoint", Recipe("int5"), folder / "blob", Store(folder / "store"))
    return Blob.open(folder / "blob")


def test_the_shapes_are_those_of_qwen3_8b() -> None:
    numbers = sum(
        script.np.prod(shape)
        for tensors in script.Shape().shards().values()
        for shape in tensors.values()
    )
    assert numbers == 8_190_735_360


def test_a_checkpoint_is_the_same_at_each_run_and_no_two_tensors_are(tmp_path: Path) -> None:
    for name in ("a", "b"):
        script.synthesize(tmp_path / name, SHAPE)
    digests = [
        [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((tmp_path / n).iterdir())]
        for n in ("a", "b")
    ]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == len(digests[0])


def test_every_kind_is_sampled_and_the_limit_is_of_the_same_run(
    blob: Blob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quiet, "OTHERS", 1.0)
    samples = script.measure(blob, [1, 2], 2, 1, Console(quiet=True))
    counted = {(one["kind"], one["threads"]) for one in samples}
    kinds = {"decode", "sha256", "pieces", "tensors"}
    assert counted == {(kind, n) for kind in kinds for n in (1, 2)} | {("naive", 1)}
    figures = script.summary(samples, blob, 1.0)
    assert figures["bytes"] == blob.manifest.size
    for row in figures["threads"].values():
        # Seconds are told in thousandths, of which these take a few.
        limit, pieces, half = row["limit_seconds"], row["pieces_seconds"], 0.0006
        least, most = (limit - half) / (pieces + half), (limit + half) / max(pieces - half, 1e-9)
        assert least - 0.001 <= row["pieces_of_limit"] <= most + 0.001


def test_the_plain_way_gives_the_same_bytes_or_fails(
    blob: Blob, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.naive(blob, 1)
    monkeypatch.setattr(script, "from_float32", lambda values: values.astype("uint16"))
    with pytest.raises(RuntimeError, match="other bytes"):
        script.naive(blob, 1)


def test_a_sample_while_others_work_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.5, 0.2, 0.01])

    class Fake(quiet.Sample):
        @property
        def quiet(self) -> bool:
            self.others = next(shares)
            return self.others <= quiet.OTHERS

    monkeypatch.setattr(quiet, "Sample", Fake)
    monkeypatch.setattr(quiet.time, "sleep", lambda _: None)
    sample, rejected = quiet.sampled(lambda: None)
    assert sample.others == 0.01
    assert [one.others for one in rejected] == [0.5, 0.2]
