"""Bakes the compile cache of a variant, and proves that a fresh process hits it.

    start ─► warm ─► stop ─► collect ─► seal ─► copy ─► start ─► warm ─► stop ─► publish
    └───── in the work folder ───────┘         └── on a read-only copy elsewhere ──┘

The second engine runs with ``VLLM_FORCE_AOT_LOAD=1``, in an empty temporary folder, on a copy at
another path. It must load what the first one compiled, compile nothing (what vLLM's log and the
folders say, not what we assume), answer one fixed prompt by the very same tokens, which the root
keeps (``bake.answer``), and leave its root as it was. Only then does the root get its
name. Knows nothing of how a server decides to use it (``serve.baked``).
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bake import answer, explain, tree
from bake.answer import Answer
from bake.errors import BakeError
from bake.progress import Timer
from bake.trial import Life, Trial, disk, live, scratch
from blob.files import replace
from serve import baked, identity, manifest
from serve.command import served_names
from serve.engine import Limits, Status
from serve.errors import EngineFailed
from serve.identity import Graph, Identity
from serve.plan import Plan
from serve.plugin.factors import VARIABLE
from serve.siblings import PRESENT_AS

AOT = "vllm/torch_compile_cache/torch_aot_compile"
GRAPHS = f"{AOT}/*/rank_*/model"
# Inductor's locks are taken anew by every process; what it serves from is never written to.
LOCKS = f"{AOT}/*/inductor_cache/locks"
# What the engine makes if it is missing, which it cannot in a read-only root.
FOLDERS = ("vllm", "inductor", "triton", "flashinfer")
KEEP = "keep"
# What a compiler leaves. None of it may appear outside the root while it is verified.
COMPILED = frozenset((".so", ".o", ".gch", ".cubin", ".ptx", ".hsaco"))
BAKE = ("start the engine, compiling", "warm every shape", "stop it")
VERIFY = ("start from a read-only copy", "warm it again", "stop that")


@dataclass(frozen=True)
class Report:
    """What a bake made and how long it took; seconds throughout. ``answer``: the recorded text."""

    variant: str
    root: str
    graphs: tuple[str, ...]
    loaded: int
    compiled: int
    files: int
    bytes: int
    answer: str
    phases: Mapping[str, float]
    compiling_start: Mapping[str, float]
    verified_start: Mapping[str, float]

    def sentence(self) -> str:
        """For a person."""
        cold, warm = (sum(start.values()) for start in (self.compiling_start, self.verified_start))
        return (
            f"{self.root}: {len(self.graphs)} graphs, {self.files} files, {self.bytes} bytes; "
            f"verified in a fresh process: compiled {self.compiled}, loaded {self.loaded}; "
            f"ready in {warm:.1f} s (compiling {cold:.1f} s)"
        )


def bake(plan: Plan, baked_root: Path, limits: Limits, timer: Timer, present: str = "") -> Report:
    """Make the baked root of ``plan`` below ``baked_root``, or leave what stood there.

    ``present`` is a sibling's name that the GPU goes by meanwhile.

    :raises BakeError: naming what failed; in a failed verification, each factor that differed.
    """
    names = (plan.target.name, plan.model.name, plan.variant.name)
    root = baked.root_of(baked_root.absolute(), *names)
    with disk(root), tree.locked(root):
        for line in tree.recover(root):
            timer.progress.say(line)
        part = tree.beside(root, ".part")
        part.mkdir()
        env = {PRESENT_AS: present} if present else {}
        compiling = _compile(plan, part, env, limits, timer)
        with timer.phase("collect, digest and seal"):
            made = _collect(plan, part, compiling, present)
        verified = _verify(plan, part, env, limits, timer)
        _check_answer(compiling.answer, verified.answer)
        with timer.phase("put it in its place"):
            tree.put_in_place(root)
        report = _report(plan, root, made, (compiling, verified), timer)
        replace(report_path(root), (json.dumps(asdict(report), indent=2) + "\n").encode())
    return report


def report_path(root: Path) -> Path:
    """Where the report of a root lies: beside it, as the root holds what is served and no more."""
    return root.with_name(f"{root.name}.report.json")


def _compile(plan: Plan, part: Path, env: Mapping[str, str], limits: Limits, timer: Timer) -> Life:
    with scratch() as folder:
        said = {VARIABLE: str(part / "factors"), **env}
        return live(Trial(plan, part, folder, said, limits), timer, BAKE)


def _collect(plan: Plan, part: Path, life: Life, present: str) -> manifest.Manifest:
    """What the engine left, made into a root: complete, described, read-only, listed."""
    records = explain.read(part).records if (part / "factors").is_dir() else ()
    _check_complete(part, life.status, records)
    for locks in part.glob(LOCKS):
        shutil.rmtree(locks)
    for folder in FOLDERS:
        (part / folder).mkdir(exist_ok=True)
    # A folder without a file is in no manifest, and would be missing from every copy.
    for path in [*part.rglob("*")]:
        if path.is_dir() and not any(path.iterdir()):
            (path / KEEP).touch()
    (part / identity.FILE).write_bytes(identity.dump(_identity(plan, records, present)))
    (part / answer.FILE).write_bytes(answer.dump(_recorded(plan, life.answer)))
    tree.seal(part)
    with tree.unsealed(part):
        return manifest.write(part)


def _check_complete(part: Path, status: Status, records: Sequence[explain.Record]) -> None:
    """Every graph that was looked up was compiled, saved and recorded.

    :raises BakeError: naming the count that is wrong.
    """
    saved, on_disk = set(status.compiled), {str(path) for path in part.glob(GRAPHS)}
    if not on_disk:
        raise BakeError(
            "vLLM compiled no graph that can be saved: nothing to bake",
            "is compilation off for this variant or target?",
        )
    if saved != on_disk:
        odd = ", ".join(sorted(saved ^ on_disk))
        raise BakeError(f"vLLM logged {len(saved)} saved graphs, {len(on_disk)} are there: {odd}")
    if unlike := [r["graph"] for r in records if not r.get("reproduced")]:
        raise BakeError(f"the recorded factors do not give the key of {', '.join(unlike)}")
    recorded = {record["hash"] for record in records}
    if missing := {Path(path).parts[-3] for path in on_disk} - recorded:
        raise BakeError(
            f"no key factors were recorded for {', '.join(sorted(missing))}",
            "was serve/plugin loaded? Its lines in the log begin with 'preheat:'",
        )


def _identity(plan: Plan, records: Sequence[explain.Record], present: str) -> Identity:
    here = identity.here(plan)
    device = here.device.model_copy(update={"presented": present or here.device.name})
    graphs = sorted({(record["graph"], record["hash"]) for record in records})
    named = tuple(Graph(name=name, hash=digest) for name, digest in graphs)
    return here.model_copy(update={"device": device, "graphs": named})


def _recorded(plan: Plan, said: Answer) -> answer.Recorded:
    model = served_names(plan.model, plan.variant)[0]
    return answer.record(answer.request(model), said)


def _verify(plan: Plan, part: Path, env: Mapping[str, str], limits: Limits, timer: Timer) -> Life:
    """A fresh engine on a read-only copy of ``part`` compiles nothing and loads everything.

    :raises BakeError: it does not.
    """
    with scratch() as folder:
        copy, factors, temporary = (folder / name for name in ("root", "factors", "t"))
        with timer.phase("copy"):
            shutil.copytree(part, copy)
            temporary.mkdir()
        said = {**baked.FORCED, VARIABLE: str(factors), **env}
        try:
            life = live(Trial(plan, copy, temporary, said, limits), timer, VERIFY)
        except EngineFailed as error:
            why = "\n".join(_explained(part, factors)) or "  no recorded factor differs"
            raise BakeError(
                f"verification: no start from the baked cache: {error.what}\n{why}\n"
                + "\n".join(f"  engine | {line}" for line in error.tail)
            ) from error
        try:
            _check_hit(part, copy, temporary, life.status, factors)
        finally:
            # A sealed folder cannot be emptied but by root.
            tree.remove(copy)
        return life


def _check_hit(part: Path, copy: Path, temporary: Path, status: Status, factors: Path) -> None:
    expected = {str(path.relative_to(part)) for path in part.glob(GRAPHS)}
    loaded = {path.removeprefix(f"{copy}/") for path in status.loaded}
    problems = [f"compiled {path}" for path in status.compiled]
    problems += [f"refused {path}" for path in status.refused]
    problems += [f"did not load {path}" for path in sorted(expected - loaded)]
    problems += [f"loaded {path}, which was not baked" for path in sorted(loaded - expected)]
    problems += [f"compiled outside the root: {path}" for path in _strays(temporary)]
    problems += [f"changed its root: {violation}" for violation in manifest.verify(copy)]
    if problems:
        lines = [f"  {problem}" for problem in problems]
        raise BakeError(
            "verification: a fresh start does not live on the baked cache alone:\n"
            + "\n".join([*lines, *_explained(part, factors)])
        )


def _check_answer(expected: Answer, got: Answer) -> None:
    if where := answer.differs(expected, got):
        raise BakeError(
            f"verification: a fresh start answers {answer.PROMPT!r} differently: {where}",
            "bake again; if that fails too, the engine is not deterministic, and cannot be proven",
        )


def _strays(temporary: Path) -> Iterator[str]:
    for path in temporary.rglob("*"):
        if path.suffix in COMPILED:
            yield str(path.relative_to(temporary))


def _explained(part: Path, factors: Path) -> list[str]:
    """Each key factor that differed between the two engines, and what refused a graph."""
    try:
        fresh = explain.read(factors)
    except BakeError:
        return []
    found = explain.explain(explain.read(part), fresh)
    reasons = [f"{r['graph']} {r['outcome']}: {r['reason']}" for r in fresh.records if r["reason"]]
    told = "" if found.equal else explain.render(found)
    return [f"  {line}" for line in (*reasons, *told.splitlines())]


def _report(
    plan: Plan,
    root: Path,
    made: manifest.Manifest,
    lives: tuple[Life, Life],
    timer: Timer,
) -> Report:
    compiling, verified = (life.status for life in lives)
    return Report(
        variant=plan.variant.name,
        root=str(root),
        graphs=tuple(sorted(Path(path).parts[-3] for path in compiling.compiled)),
        loaded=len(verified.loaded),
        compiled=len(verified.compiled),
        files=len(made.files),
        bytes=made.total_bytes,
        answer=lives[0].answer.text,
        phases=timer.seconds,
        compiling_start=compiling.phases,
        verified_start=verified.phases,
    )
