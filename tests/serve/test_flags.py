"""Every flag that any variant gives is one that vLLM's own parser takes, with the value it gets."""

import json
import os
import subprocess
import sys

import pytest

from serve.command import CPU_ENVIRONMENT
from tests.experiments.test_files import TARGETS, VARIANTS, command

pytestmark = pytest.mark.torch

# In a process of its own: vLLM's import changes the one it is in. As the API server does it,
# up to where a config is looked for: what is named there is no model of this machine.
PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = make_arg_parser(FlexibleArgumentParser())
for line in sys.stdin:
    name, argv = json.loads(line)
    parsed = parser.parse_args(argv)
    validate_parsed_serve_args(parsed)
    AsyncEngineArgs.from_cli_args(parsed)
    print("took", name, flush=True)
"""
ENTRY_WORDS = 3


def parsed(argvs: list[tuple[str, list[str]]]) -> "subprocess.CompletedProcess[str]":
    said = "".join(json.dumps(one) + "\n" for one in argvs)
    return subprocess.run(
        [sys.executable, "-c", PARSE],
        env={**os.environ, **CPU_ENVIRONMENT},
        input=said,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_vllms_parser_takes_every_variant_on_every_target() -> None:
    argvs = [
        (f"{variant}/{target}", [*command(variant, model, target).argv[ENTRY_WORDS:]])
        for variant in VARIANTS
        for target, model in zip(TARGETS, ("qwen3.5-4b", "tiny"), strict=True)
    ]
    done = parsed(argvs)
    took = [line.removeprefix("took ") for line in done.stdout.splitlines() if "took" in line]
    assert took == [name for name, _ in argvs], done.stderr[-2000:]


@pytest.mark.parametrize("flag", [["--use-cudnn-prefill"], ["--kv-cache-dtype", "fp7"]])
def test_it_would_refuse_a_flag_or_value_that_it_does_not_know(flag: list[str]) -> None:
    done = parsed([("v", ["--model", "m", *flag])])
    assert done.returncode == 2
    assert "took" not in done.stdout
