"""``preheat serve run | check | env | keys``: where this process's environment is read, alone."""

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from threading import Thread

from serve import __version__, identity, keys_cli
from serve.baked import retuned, settle, tell
from serve.cli import run_verb
from serve.command import engine_environment
from serve.errors import PreflightError
from serve.launch import Launcher, open_launcher
from serve.plan import Plan, make_plan
from serve.readahead import read_ahead
from serve.settings import Settings, read_settings, reference
from serve.signals import STOPPING, held

EXAMPLES = """examples:
  preheat serve run seq8-best --port 8001
  preheat serve check seq8-best --json
  preheat serve env
  preheat serve keys add --file keys.json --name team-a
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status 0 done, 1 failed, 2 usage, 130 interrupted."""
    return run_verb(parser().parse_args(arguments))


def parser() -> argparse.ArgumentParser:
    """The command line, with the environment's names beside the options."""
    top = argparse.ArgumentParser(
        prog="preheat serve",
        description="Run one variant of one model on this machine, as an OpenAI endpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"preheat {__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB")
    run = verbs.add_parser("run", help="start the engine and the gateway")
    run.add_argument("--port", help="TCP port (PORT)")
    run.add_argument("--host", help="address to listen on (PREHEAT_HOST)")
    run.set_defaults(verb=_run)
    check = verbs.add_parser("check", help="print the exact argv and environment, start nothing")
    check.set_defaults(verb=_check)
    env = verbs.add_parser("env", help="print every variable: name, type, default, sentence")
    env.set_defaults(verb=_env)
    keys_cli.add(verbs, os.environ)
    for verb in (run, check):
        verb.add_argument("variant", nargs="?", help="folder of experiments/ (VARIANT)")
        verb.add_argument("--model", help="name or checkpoint folder (MODEL)")
        verb.add_argument("--target", help="cpu, a10g, … (TARGET); detected when not given")
    for verb in (check, env):
        verb.add_argument("--json", action="store_true", help="for programs")
    return top


def _settings(parsed: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Settings from the environment, under what the command line says."""
    names = {"VARIANT": "variant", "MODEL": "model", "TARGET": "target", "PORT": "port"}
    names["PREHEAT_HOST"] = "host"
    said = {name: getattr(parsed, option, None) for name, option in names.items()}
    return read_settings({**environ, **{k: v for k, v in said.items() if v is not None}})


def _run(parsed: argparse.Namespace) -> int:
    settings = _settings(parsed, os.environ)
    scratch = _scratch()
    # Ctrl-C raises until the zygote is there; a SIGTERM would just kill us, and waits instead.
    with held((signal.SIGTERM,)), scratch as folder:
        plan = _plan(settings, Path(folder))
        zygote = plan.within(os.environ).command
        with closing(open_launcher(zygote, settings.stop_seconds)) as launcher, held(STOPPING):
            # While that imports vLLM: the weights are read, our own libraries imported, and the
            # files of the baked cache hashed. None of it changes what is imported there.
            Thread(target=read_ahead, args=(plan.model.path,), daemon=True).start()
            from serve.run import run

            settled = _settled(plan, settings, Path(folder))
            replan = partial(_replan, settings, Path(folder), count(1))
            return run(settings, settled, launcher, os.environ, replan)


def _settled(plan: Plan, settings: Settings, folder: Path) -> Plan:
    settled = settle(plan, settings, can_bake=_can_bake())
    if settings.retune:
        settled = retuned(settled, folder)
    return settled.within(os.environ)


def _replan(
    settings: Settings, scratch: Path, numbers: Iterator[int], variant: str
) -> tuple[Plan, Launcher, Path]:
    """What another variant needs, in a folder of its own below ``scratch``."""
    folder = scratch / f"{next(numbers)}"
    folder.mkdir()
    settings = settings.model_copy(update={"variant": variant})
    try:
        plan = _settled(_plan(settings, folder), settings, folder)
        return plan, open_launcher(plan.command, settings.stop_seconds), folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _check(parsed: argparse.Namespace) -> int:
    settings = _settings(parsed, os.environ)
    # A run makes its folder anew; RUN is all that it would print otherwise.
    plan = _plan(settings, Path(_temporary()) / "preheat-RUN")
    plan = settle(plan, settings, can_bake=_can_bake())
    env = engine_environment(plan.command, os.environ)
    if parsed.json:
        told = plan.describe() | {"argv": plan.command.argv, "env": env}
        told["identity"] = identity.as_json(identity.here(plan))
        print(json.dumps(told, indent=2))
        return 0
    print(f"# model {plan.model.name}: {plan.why}")
    for dropped in plan.command.dropped:
        print(f"# {dropped}")
    for _, line in tell(plan.cache):
        print(f"# {line}")
    print("env -i \\")
    for name, value in sorted(env.items()):
        print(f"  {name}={shlex.quote(value)} \\")
    print(f"  {shlex.join(plan.command.argv)}")
    return 0


def _env(parsed: argparse.Namespace) -> int:
    entries = reference()
    if parsed.json:
        print(json.dumps([vars(entry) for entry in entries], indent=2))
        return 0
    for entry in entries:
        print(f"{entry.name} ({entry.type}, default {entry.default or 'none'})")
        print(f"    {entry.sentence}")
    return 0


def _plan(settings: Settings, folder: Path) -> Plan:
    return make_plan(settings, Path(sys.executable), folder / "engine.sock")


def _scratch() -> "tempfile.TemporaryDirectory[str]":
    """The folder of one run: its sockets lie in it.

    :raises PreflightError: there is none to be had.
    """
    folder = _temporary()
    try:
        return tempfile.TemporaryDirectory("", "preheat-", folder, ignore_cleanup_errors=True)
    except OSError as error:
        raise PreflightError(f"{folder}: {error.strerror}", "TMPDIR names another") from error


def _temporary() -> str:
    """Where temporary files go.

    :raises PreflightError: no folder takes one: all are read-only, or full.
    """
    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise PreflightError(
            f"no folder takes a temporary file: {error.strerror}",
            "TMPDIR names one that does; in a container: docker run --tmpfs /tmp",
        ) from error


def _can_bake() -> bool:
    """Whether ``preheat bake`` is there: the image ships without."""
    return find_spec("bake") is not None


if __name__ == "__main__":
    sys.exit(main())
