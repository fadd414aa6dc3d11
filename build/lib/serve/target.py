"""A target: the hardware facts that decide which levers can be on.

A lever the hardware cannot do is declared beside the reason (``NO_CUDA_GRAPHS=why``), so that
nothing can be dropped without saying why. Probing this machine is the thin edge at the end.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from serve.config import CommaSeparated, Config, parse, read_pairs
from serve.errors import ConfigError, nearest

QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")


class Target(Config):
    """Facts of one kind of machine, from ``experiments/targets/<name>.env``."""

    name: str = Field(description="Name of the file; not settable.")
    device: Literal["cpu", "cuda"] = Field(description="vLLM backend.")
    default_model: str = Field(description="Model served when MODEL is not given.")
    default_model_with_mtp: str = Field(
        "",
        description="The same for variants that draft with the checkpoint's MTP head; "
        "`DEFAULT_MODEL` when not set.",
    )
    device_names: Annotated[tuple[str, ...], CommaSeparated] = Field(
        (), description="GPU names, as nvidia-smi prints them, that are this target."
    )
    memory_mib: int | None = Field(None, ge=1, description="Memory of the GPU in MiB.")
    compute_capability: str | None = Field(None, description="CUDA compute capability.")
    multiprocessors: int | None = Field(None, ge=1, description="Streaming multiprocessors.")
    kv_cache_mib: int | None = Field(
        None, ge=1, description="KV cache in MiB; what vLLM finds free when not set."
    )
    preload: str = Field(
        "", description="Library for LD_PRELOAD, relative to the prefix of the environment."
    )
    reserve_gib: float = Field(
        0, ge=0, description="Memory the engine needs beside weights and KV cache, in GiB."
    )
    no_fork: str = Field(
        "", description="Why engines are not forked off a process that has vLLM imported."
    )
    max_speculative_tokens: int | None = Field(
        None, ge=1, description="Most tokens drafted a step that the engine bears here."
    )
    max_speculative_tokens_why: str = Field("", description="What happens beyond that.")
    no_attention_backend: str = Field("", description="Why attention kernels are not chosen here.")
    no_fuse_qk_norm_rope: str = Field(
        "", description="Why norms are not fused with the rotary embedding here."
    )
    no_cuda_graphs: str = Field("", description="Why CUDA graphs are not captured here.")
    no_prefix_caching_with_mtp: str = Field(
        "", description="Why prefix caching is off here while MTP drafts."
    )


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi reports it; memory in MiB."""

    name: str
    memory_mib: int
    free_mib: int


def known_targets(experiments: Path) -> list[str]:
    """Names of the targets that stand in ``experiments/targets``, sorted."""
    return sorted(path.stem for path in (experiments / "targets").glob("*.env"))


def load_target(name: str, experiments: Path) -> Target:
    """Read ``experiments/targets/<name>.env``.

    :raises ConfigError: no such target (lists those there are), or a bad file.
    """
    known = known_targets(experiments)
    if name not in known:
        raise ConfigError(
            f"no target {name!r} in {experiments / 'targets'}{nearest(name, known)}",
            f"there are: {', '.join(known) or 'none'}",
        )
    path = experiments / "targets" / f"{name}.env"
    return parse(Target, read_pairs(path), str(path), name=name)


def match_target(gpu: Gpu | None, targets: list[Target]) -> Target | None:
    """The target that these facts are, if any: by GPU name, or the CPU when there is no GPU."""
    if gpu is None:
        return next((target for target in targets if target.device == "cpu"), None)
    return next((target for target in targets if gpu.name in target.device_names), None)


def choose_target(name: str | None, gpu: Gpu | None, experiments: Path) -> Target:
    """The named target, or the one this machine is.

    :raises ConfigError: unknown name, or a GPU that no target file describes.
    """
    if name is not None:
        return load_target(name, experiments)
    targets = [load_target(known, experiments) for known in known_targets(experiments)]
    found = match_target(gpu, targets)
    if found is None:
        what = f"GPU {gpu.name!r}" if gpu else "a machine without a GPU"
        raise ConfigError(
            f"no target in {experiments / 'targets'} describes {what}",
            f"say TARGET=<{'|'.join(target.name for target in targets)}> or add a target file",
        )
    return found


def probe_gpu() -> Gpu | None:
    """The first GPU that nvidia-smi lists, or None where there is none."""
    try:
        done = subprocess.run(QUERY, capture_output=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_gpu(done.stdout) if done.returncode == 0 else None


def parse_gpu(said: str) -> Gpu | None:
    """The first GPU of nvidia-smi's answer, or None when it lists none."""
    lines = said.strip().splitlines()
    fields = [field.strip() for field in lines[0].rsplit(",", 2)] if lines else []
    if len(fields) != QUERY[1].count(",") + 1:
        return None
    # "[N/A]" where GPU and CPU share their memory: it counts as none, so the check says so.
    total, free = (int(field) if field.isdecimal() else 0 for field in fields[1:])
    return Gpu(fields[0], total, free)
