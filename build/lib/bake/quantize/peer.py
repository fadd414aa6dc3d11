"""``--by llm-compressor``: hands a recipe to an interpreter that has it, and takes its folder."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from bake import tree
from bake.checkpoint import standing, whole
from bake.checkpoint.along import goes
from bake.checkpoint.folder import find, located, open_shards
from bake.errors import BakeError
from bake.quantize import corpus as texts
from bake.quantize.recipe import Recipe, check
from bake.weights.checkpoint import open_checkpoint
from blob.files import printable

VARIABLE = "PREHEAT_LLMCOMPRESSOR"
SCRIPT = Path(__file__).with_name("llm_compressor.py")
TARGETS = {"mlp": ["re:.*mlp\\.(gate|up|down)_proj$"], "linear": ["Linear"]}
# Beside the head: what ours leaves alone too.
IGNORED = ["lm_head", "re:^mtp.*", "re:.*visual.*", "re:.*in_proj_[ab]$"]
SAID = 400


def quantize(source: Path, folder: Path, recipe: Recipe, corpus: Path) -> int:
    """Make ``folder``; exit status 0.

    :raises BakeError: there is no such interpreter, it failed, or it cannot do the recipe.
    :raises Malformed: tensors are not what the config says.
    """
    check(recipe)
    python = _interpreter()
    if recipe.lm_head or recipe.weights == "none":
        raise BakeError("--lm-head: llm-compressor leaves a tied head", "leave --by out")
    standing.check_free(folder, source)
    # transformers, which it reads with, makes up what is missing.
    config = open_checkpoint(source).config
    whole.check_stored(source, config, located(open_shards(find(source))))
    ids = texts.windows(texts.texts(corpus), source / "tokenizer.json", recipe).tolist()
    try:
        with tree.locked(folder):
            standing.free(folder, source)
            part = tree.beside(folder, ".part")
            _run(python, source, part, recipe, ids)
            shutil.copytree(source, part, ignore=_made_there(part), dirs_exist_ok=True)
            tree.settle(part)
            tree.put_in_place(folder)
    except OSError as error:
        raise standing.unwritten(error, folder) from error
    print(f"wrote {printable(folder)}, by llm-compressor")
    return 0


def _interpreter() -> str:
    path = os.environ.get(VARIABLE, "")
    if not path or not os.access(path, os.X_OK):
        told = f"{VARIABLE}: expected a python that has llmcompressor, got {path!r}"
        hint = "python -m venv E; E/bin/pip install llmcompressor==0.14.0.1; say E/bin/python"
        raise BakeError(told, hint)
    return path


def _run(python: str, source: Path, part: Path, recipe: Recipe, ids: list[list[int]]) -> None:
    job = {
        "source": str(source.resolve()),
        "folder": str(part),
        "ids": ids,
        "targets": TARGETS[recipe.targets],
        "ignore": IGNORED,
        "group": recipe.group_size,
        "awq": recipe.awq,
    }
    # It logs into the folder it is run in; modules of this repository must not be found there.
    with tempfile.TemporaryDirectory(prefix="preheat-") as elsewhere:
        done = subprocess.run(
            [python, "-P", str(SCRIPT)],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            cwd=elsewhere,
            check=False,
        )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing was said"]
        raise BakeError(f"llm-compressor failed: {printable(said[0], SAID)}", "leave --by out")


def _made_there(part: Path) -> Callable[[str, list[str]], set[str]]:
    """Of the source, what is not there: templates. No weights, and nothing it wrote itself."""

    def left_out(_folder: str, names: list[str]) -> set[str]:
        return {
            name
            for name in names
            if (part / name).exists()
            or not name.endswith((".json", ".jinja", ".txt", ".model"))
            or "index" in name
            or not goes(name)
        }

    return left_out
