import socket
from dataclasses import replace
from pathlib import Path

import pytest

from serve import preflight
from serve.errors import PreflightError
from serve.model import Model
from serve.preflight import (
    GIB,
    MIB,
    bind,
    check_compiler,
    check_kernels,
    check_memory,
    check_socket,
    free_memory,
    needed_bytes,
)
from serve.target import Gpu, Target
from serve.variant import Variant

MODEL = Model("m", Path("/m"), "A", 2 * GIB, has_mtp=False)


def target(device: str, **facts: str) -> Target:
    pairs = {"NAME": "t", "DEVICE": device, "DEFAULT_MODEL": "m", **facts}
    return Target.model_validate(pairs)


def test_needed_is_weights_and_cache_and_reserve() -> None:
    assert needed_bytes(MODEL, target("cpu", KV_CACHE_MIB="1024", RESERVE_GIB="0.5")) == (3.5 * GIB)
    assert needed_bytes(MODEL, target("cuda")) == 2 * GIB


def test_what_will_compile_needs_a_compiler() -> None:
    check_compiler("/usr/bin/g++")
    with pytest.raises(PreflightError, match=r"compiles, and there is no g\+\+ on PATH"):
        check_compiler(None)


PLAIN = Variant.model_validate({"NAME": "v", "SUMMARY": "s"})
FP8 = PLAIN.model_copy(update={"kv_cache_dtype": "fp8"})
INT4 = replace(MODEL, int4=True)


@pytest.mark.parametrize(
    ("model", "variant", "said"),
    [
        (INT4, PLAIN, "v of m has INT4 weights, for"),
        (MODEL, FP8, "v of m has an FP8 KV cache, for"),
        (INT4, FP8, "v of m has INT4 weights and an FP8 KV cache, for"),
    ],
)
def test_kernels_that_no_lesser_cpu_has_are_asked_for_before(
    model: Model, variant: Variant, said: str
) -> None:
    check_kernels(model, variant, frozenset(("avx2", "avx512f")))
    # One that does not tell is not of this kind.
    check_kernels(model, variant, frozenset())
    check_kernels(MODEL, PLAIN, frozenset(("avx2",)))
    with pytest.raises(PreflightError, match=said):
        check_kernels(model, variant, frozenset(("avx2",)))


def test_too_little_memory_says_needed_and_free() -> None:
    check_memory(GIB, GIB, "memory")
    with pytest.raises(PreflightError) as refused:
        check_memory(int(5.5 * GIB), 2 * GIB, "GPU memory")
    said = str(refused.value)
    assert said.startswith("too little GPU memory: needed 5.5 GiB, free 2.0 GiB\nhint: ")
    assert "PREHEAT_CHECK_MEMORY=false" in said


def test_a_cuda_target_has_the_gpus_memory_and_none_without_one() -> None:
    assert free_memory(target("cuda"), Gpu("g", 100, 7)) == (7 * MIB, "GPU memory")
    assert free_memory(target("cuda"), None) == (0, "GPU memory")


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    paths = ((tmp_path / "memory.max", tmp_path / "memory.current"),)
    monkeypatch.setattr(preflight, "CGROUP_LIMITS", paths)
    return tmp_path


def test_a_cpu_target_has_what_the_machine_has_available(cgroup: Path) -> None:
    free, what = free_memory(target("cpu"), None)
    assert what == "memory"
    assert free > MIB


@pytest.mark.parametrize("stat", [None, "anon 3\ninactive_file 0\nactive_file 0\n"])
def test_a_container_has_what_its_limit_leaves(cgroup: Path, stat: str | None) -> None:
    (cgroup / "memory.max").write_text(f"{3 * MIB}\n")
    (cgroup / "memory.current").write_text(f"{2 * MIB}\n")
    if stat:
        (cgroup / "memory.stat").write_text(stat)
    assert free_memory(target("cpu"), None) == (MIB, "memory")


def test_files_that_the_kernel_only_caches_do_not_count_as_used(cgroup: Path) -> None:
    # After a start, the weights that were read fill the container up to its limit.
    (cgroup / "memory.max").write_text(f"{4 * MIB}\n")
    (cgroup / "memory.current").write_text(f"{4 * MIB}\n")
    (cgroup / "memory.stat").write_text(f"inactive_file {MIB}\nactive_file {2 * MIB}\n")
    assert free_memory(target("cpu"), None) == (3 * MIB, "memory")


def test_a_container_without_a_limit_has_what_the_machine_has(cgroup: Path) -> None:
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("5\n")
    assert free_memory(target("cpu"), None)[0] > MIB


def test_a_bound_port_is_taken_at_once(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            pass
        with pytest.raises(PreflightError) as refused:
            bind("127.0.0.1", port)
    assert str(refused.value) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use\nhint: take another: PORT=8001"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "[::1]", "::zz", "a" * 70, "..", "é" * 70])
def test_an_address_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(PreflightError, match="cannot listen on") as refused:
        bind(host, 0)
    assert refused.value.hint == "PREHEAT_HOST is an address of this machine"


def test_a_socket_that_the_kernel_cannot_name_is_refused(tmp_path: Path) -> None:
    longest = tmp_path / ("x" * (107 - len(bytes(tmp_path)) - 1))
    check_socket(longest)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(longest))
    with pytest.raises(PreflightError, match="has 108 bytes, at most 107 are possible"):
        check_socket(longest.with_name(longest.name + "x"))
