"""A real bake of a real variant: it hits in a fresh process, and any change to it is caught."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bake import answer, tree
from bake.explain import read
from scripts.served import Served, served
from serve import baked, identity, manifest
from serve.identity import Rejected
from serve.plan import make_plan
from serve.settings import REPOSITORY, read_settings
from tests.integration.conftest import settings

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

GRAPHS = {"backbone", "eagle_head"}
ASK = (sys.executable, "-I", "-S", str(REPOSITORY / "serve" / "ask.py"))


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("baked")
    return settings("seq8-best", folder / "cold") | {"PREHEAT_BAKED_ROOT": str(folder / "baked")}


@pytest.fixture(scope="module")
def report(where) -> dict:
    """The bake itself, by the command that a person types."""
    command = [sys.executable, "-c", "import preheat,sys; sys.exit(preheat.main())"]
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [*command, "bake", "cache", "seq8-best", "--json"],
        env=inherited | {name: where[name] for name in where if name != "VARIANT"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["bakes"][0]


@pytest.fixture(scope="module")
def root(report) -> Path:
    return Path(report["root"])


@contextmanager
def read_only(root: Path) -> Iterator[None]:
    """As a file system that cannot be written to, where we may mount one: root writes to 0444."""
    bind = ["mount", "--bind", str(root), str(root)]
    if subprocess.run(bind, capture_output=True, check=False).returncode:
        if os.getuid() == 0:
            pytest.skip("nothing can be mounted here, and root may write to anything else")
        yield
        return
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(root)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


def asked(running: Served, recorded: answer.Recorded) -> bytes:
    """What the gateway answers to the recorded request, by the script that is in the image."""
    done = subprocess.run(
        [*ASK, recorded.path, json.dumps(recorded.body), "--timeout", "60"],
        env={"PORT": running.url.rpartition(":")[2]},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def drafts(running: Served) -> tuple[float, float]:
    """Tokens drafted and accepted so far."""
    said = running.get("/metrics").decode()
    names = ("num_draft_tokens", "num_accepted_tokens")
    found = [re.search(rf"^vllm:spec_decode_{n}_total\S* (\S+)$", said, re.M) for n in names]
    drafted, accepted = (float(one[1]) for one in found if one)
    return drafted, accepted


def test_a_fresh_process_loaded_all_that_was_baked_and_compiled_nothing(report, root):
    assert (report["compiled"], report["loaded"], len(report["graphs"])) == (0, 2, 2)
    found = baked.inspect(root, {})
    assert isinstance(found, baked.Sound), found
    assert {graph.name for graph in found.identity.graphs} == GRAPHS


def test_what_the_compiling_engine_said_is_recorded_listed_and_long_enough(report, root):
    recorded = answer.load((root / answer.FILE).read_bytes())
    assert answer.FILE in {entry.path for entry in manifest.parse(manifest.read(root)).files}
    assert len(recorded.token_ids) == answer.TOKENS
    assert recorded.text == report["answer"]
    assert recorded.text.startswith(" Paris")
    # Not one token over and over: that would be the same whatever was computed.
    assert len(set(recorded.token_ids)) > 10


def test_the_key_of_each_graph_can_be_made_from_its_recorded_factors(root):
    records = read(root).records
    assert {record["graph"] for record in records} == GRAPHS
    assert all(record["reproduced"] for record in records)
    assert all(record["sources"] for record in records)


def test_the_server_starts_from_it_on_a_read_only_disk(where, root, tmp_path):
    with (
        read_only(root),
        served(where | {"PREHEAT_CACHE_POLICY": "require"}, tmp_path) as running,
    ):
        cache = json.loads(running.get("/ready"))["compile_cache"]
        assert cache == {"loaded": 2, "compiled": 0, "refused": []}
        assert json.loads(running.get("/variant"))["cache"]["used"] is True
        # As an image is verified, and a second time: what was asked before changes nothing.
        recorded = answer.load((root / answer.FILE).read_bytes())
        drafted, accepted = drafts(running)
        for _ in range(2):
            assert answer.differs(recorded, answer.parse(asked(running, recorded))) == ""
        # Drafts that were taken and drafts that were not: both paths say the same.
        more_drafted, more_accepted = drafts(running)
        assert 0 < more_accepted - accepted < more_drafted - drafted
    assert manifest.verify(root) == []


def test_tampering_with_any_file_is_caught(root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        raw = path.read_bytes()
        # One bit of the last byte; a file that is empty gets a byte.
        other = raw[:-1] + bytes([raw[-1] ^ 1]) if raw else b"x"
        path.chmod(0o644)
        path.write_bytes(other)
        assert isinstance(baked.inspect(copy, {}), baked.Unfit), path
        path.write_bytes(raw)
    assert isinstance(baked.inspect(copy, {}), baked.Sound)
    tree.remove(copy)


def test_taking_any_file_away_or_adding_one_is_caught(root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    for folder in (copy, *copy.rglob("*")):
        folder.chmod(0o755 if folder.is_dir() else 0o444)
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        aside = tmp_path / "aside"
        path.rename(aside)
        assert isinstance(baked.inspect(copy, {}), baked.Unfit), path
        aside.rename(path)
    (copy / "inductor" / "more").touch()
    assert isinstance(baked.inspect(copy, {}), baked.Unfit)


def test_another_k_is_refused_although_vllms_key_is_the_same(root, where, tmp_path):
    plan = make_plan(read_settings(where), Path(sys.executable), tmp_path / "engine.sock")
    known = identity.parse((root / identity.FILE).read_bytes())
    here = identity.here(plan)
    assert not isinstance(identity.match(known, here), Rejected)
    levers = {"num_speculative_tokens": 3, "cudagraph_capture_sizes": None}
    fewer = plan.variant.model_copy(update=levers)
    other = identity.here(type(plan)(fewer, plan.model, plan.target, plan.gpu, plan.command))
    verdict = identity.match(known, other)
    assert isinstance(verdict, Rejected)
    assert {reason.factor for reason in verdict.reasons} == {
        "variant digest",
        "argument --speculative-config",
    }
