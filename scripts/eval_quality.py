"""What a variant costs in quality, measured against the BF16 model served with no levers.

Serves the reference, the reference again (the engine's own noise), then each variant, through the
gateway. Compares log-probabilities over held-out texts (KL, top-1 agreement, perplexity) and what
tasks score, item by item; says whether the variant is at parity by the rule of docs/quality.md.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from blob.errors import Stop
from experiments.record import Record, add, check_writable, folder_of, now, this_machine, typed
from scripts.datasets import FOLDER
from scripts.lines import BadLine
from scripts.quality import harness, report
from scripts.quality.divergence import NotAligned
from scripts.quality.harness import Asked, NotEvaluated, Skipped
from scripts.quality.modes import MODES, Text, evenly, read_texts
from scripts.quality.run_code import held
from scripts.quality.session import REFERENCE, Answers, Questions, ask, say
from scripts.served import Failed, NotServed
from serve.choice import choose_model
from serve.cli import positive
from serve.errors import ConfigError
from serve.model import find_model, load_model
from serve.settings import REPOSITORY
from serve.target import choose_target, probe_gpu
from serve.variant import load_variant

EXPERIMENTS = REPOSITORY / "experiments"
# What may come between a server and its figures.
NOT_MEASURED = (NotServed, NotEvaluated, NotAligned, Failed, OSError, subprocess.SubprocessError)
TINY = "tiny"
TINY_TEXTS = REPOSITORY / "weights" / "tiny" / "heldout.jsonl"
EXAMPLES = """examples:
  python -m scripts.eval_quality awq --model tiny --mode full --tasks none
  python -m scripts.eval_quality seq8,seq8-best --model smollm2-135m --mode fast
  python -m scripts.eval_quality seq8 --model smollm2-135m --mode full --tasks ifeval
  python -m scripts.eval_quality baseline --model /tmp/quantized --reference-model tiny

Data comes by `make datasets`; a task whose data is not here is skipped, and said so.
Exit status 0 measured, whatever the verdict; 1 not measured; 2 usage.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when every variant was measured, 1 not, 2 usage."""
    parsed = parser().parse_args(arguments)
    try:
        parsed.command = typed("scripts.eval_quality", arguments)
        parsed.variants = named(parsed.variants)
        model = chosen_model(parsed)
        questions = questions_of(parsed, model, os.environ)
        for name in parsed.variants if parsed.record else ():
            check_writable(folder_of(name))
        return run(parsed, session(parsed, model, questions, os.environ))
    except Stop as error:
        print(f"eval_quality: {error}", file=sys.stderr)
        return error.exit_code
    except BadLine as error:
        # Of the texts. Any other ValueError is a bug of ours, and after hours keeps its place.
        print(f"eval_quality: {error}", file=sys.stderr)
        return 2
    except NOT_MEASURED as error:
        print(f"eval_quality: not measured: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.eval_quality",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "variants", nargs="+", metavar="VARIANT", help="folders of experiments/; commas part them"
    )
    top.add_argument("--model", default="", help="name or checkpoint folder (the target's own)")
    top.add_argument("--reference-model", default="", help="of the reference (the same)")
    top.add_argument("--target", default="", help="cpu, a10g, … (detected)")
    top.add_argument("--mode", choices=list(MODES), default="smoke", help="how much (smoke)")
    top.add_argument("--texts", type=Path, help="JSON lines (tiny: its own held-out; else texts)")
    top.add_argument(
        "--tasks", default="all", help=f"all, none, or of {','.join(harness.TASKS)} (all)"
    )
    top.add_argument("--max-tokens", type=positive, help="longest answer to a task (the mode's)")
    top.add_argument("--concurrency", type=positive, default=8, help="requests of tasks (8)")
    top.add_argument(
        "--task-noise",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask tasks of the restarted reference, too (yes)",
    )
    top.add_argument("--run-code", action="store_true", help="run code that the model writes")
    top.add_argument("--json", action="store_true", help="figures as JSON, not as a table")
    top.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add records (yes)"
    )
    return top


def named(words: Sequence[str]) -> list[str]:
    """Each name once; as `make` hands them over, with commas between, or as words.

    :raises ConfigError: there is none.
    """
    names = (name.strip() for name in ",".join(words).split(","))
    if found := list(dict.fromkeys(name for name in names if name)):
        return found
    raise ConfigError(f"no variant in {' '.join(words)!r}", "say e.g. awq,seq8")


def questions_of(parsed: argparse.Namespace, model: str, environ: Mapping[str, str]) -> Questions:
    """What every server will be asked; tasks that are left out are told.

    :raises BadLine: no texts. :raises ConfigError: no file of them that can be read, no such task.
    """
    mode, wanted = MODES[parsed.mode], wanted_tasks(parsed.tasks)
    path = parsed.texts or (TINY_TEXTS if TINY in (model, parsed.reference_model) else None)
    path = path or FOLDER / "texts.jsonl"
    try:
        texts = evenly(read_texts(path), mode.texts)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file", "make datasets, or --texts FILE") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "--texts FILE names another") from error
    planned = harness.plan(
        wanted,
        mode,
        environ,
        run_code=parsed.run_code,
        answer_tokens=parsed.max_tokens,
    )
    for left in planned:
        if isinstance(left, Skipped):
            print(f"skipped {left.task}: {left.why}", file=sys.stderr)
    tasks = [one for one in planned if isinstance(one, Asked)]
    return Questions(texts, tasks, parsed.concurrency)


def run(parsed: argparse.Namespace, measured: Iterable[tuple[str, Record | Exception]]) -> int:
    """Keep what is ``measured`` as it comes, and tell."""
    told, failed = {}, []
    for name, record in measured:
        if isinstance(record, Exception):
            failed.append(name)
            print(f"eval_quality: {name} not measured: {record}", file=sys.stderr)
            continue
        told[name] = record.summary
        if parsed.record:
            # At once: what is measured stays, whatever becomes of the next.
            added = add(record, folder_of(name))
            say(f"wrote {added.relative_to(REPOSITORY)}")
    print(json.dumps(told, indent=1) if parsed.json else table(told))
    return 1 if failed else 0


def chosen_model(parsed: argparse.Namespace) -> str:
    """The one model of all variants: named, or the target's.

    :raises ConfigError: a variant, model or target that is none, or weights that are not there.
    """
    target = choose_target(parsed.target or None, probe_gpu(), EXPERIMENTS)
    variants = [load_variant(name, EXPERIMENTS) for name in parsed.variants]
    model = choose_model(parsed.model or None, target, variants).model
    for one in {model, parsed.reference_model or model}:
        load_model(find_model(one, EXPERIMENTS))
    return model


def wanted_tasks(words: str) -> list[str]:
    """Names of tasks.

    :raises ConfigError: one that is none.
    """
    if words in ("all", "none"):
        return list(harness.TASKS) if words == "all" else []
    wanted = [word.strip() for word in words.split(",") if word.strip()]
    if unknown := [word for word in wanted if word not in harness.TASKS]:
        raise ConfigError(f"no task {unknown[0]!r}", f"there are: {', '.join(harness.TASKS)}")
    return wanted


def session(
    parsed: argparse.Namespace, model: str, questions: Questions, environ: Mapping[str, str]
) -> Iterator[tuple[str, Record | Exception]]:
    """Each variant's record, or why there is none; without a reference there is nothing at all."""
    begun: dict[str, Any] = {"made": now(), "machine": this_machine()}
    axes = {"MODEL": model, "TARGET": parsed.target}
    first = axes | {"VARIANT": REFERENCE, "MODEL": parsed.reference_model or model}
    with tempfile.TemporaryDirectory(prefix="preheat-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        reference = ask(first, questions, work / "reference", environ)
        questions = replace(questions, drawn=[text for text, _ in reference.drawn])
        repeated = questions if parsed.task_noise else replace(questions, tasks=())
        again = ask(first, repeated, work / "again", environ)
        noise = report.compared(questions.texts, reference, again)
        for name in parsed.variants:
            try:
                answers = ask(axes | {"VARIANT": name}, questions, work / name, environ)
                found = report.compared(questions.texts, reference, answers)
                told = figures(questions, (found, noise), (reference, answers, again))
            except NOT_MEASURED as error:
                yield name, error
                continue
            yield (
                name,
                Record(
                    kind="quality",
                    command=parsed.command,
                    variant=answers.told,
                    parameters=parameters(parsed, questions, reference),
                    **begun,
                    **told,
                ),
            )


def figures(
    questions: Questions,
    compared: tuple[report.Compared, report.Compared],
    sides: tuple[Answers, Answers, Answers],
) -> dict[str, Any]:
    """A record's summary and samples, of what was ``compared`` with the reference (the variant,
    and the reference again), and of what the reference, the variant and the reference again said.
    """
    reference, answers, again = sides
    return {
        "summary": report.summary(*compared, reference, answers, again),
        "samples": report.samples(questions.texts, *compared, questions.tasks, sides),
    }


def parameters(
    parsed: argparse.Namespace, questions: Questions, reference: Answers
) -> dict[str, Any]:
    """What was asked, of what, and who the reference was."""
    return {
        "mode": parsed.mode,
        "texts": len(questions.texts),
        "texts_sha256": digest(questions.texts),
        "tasks": (tasks := [one.task for one in questions.tasks]),
        "temperature": 0,
        "concurrency": parsed.concurrency,
        "reference": reference.told,
    } | ({"run_code": held()} if harness.CODE in tasks else {})


def digest(texts: Sequence[Text]) -> str:
    """SHA-256 of the texts as they were asked."""
    return hashlib.sha256("\0".join(text.text for text in texts).encode()).hexdigest()


def table(told: dict[str, dict[str, Any]]) -> str:
    """For people: each variant's criteria, a line each, and the verdict."""
    lines = []
    for name, summary in told.items():
        lines.append(f"{name}: {summary['verdict']}, on {summary['judged_on']}")
        for one in summary["criteria"]:
            interval = one["interval"]
            span = f"{interval['point']:+.5f} [{interval['low']:+.5f}, {interval['high']:+.5f}]"
            more = one.get("items_to_decide")
            decides = f"; about {more} items would decide" if more else ""
            lines.append(f"  {one['criterion']:<40} {span}  {one['finding']}{decides}")
    return "\n".join(lines)


if __name__ == "__main__":
    # Stops what it has started, whoever ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
