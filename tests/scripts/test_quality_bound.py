import json
import subprocess
import sys

import pytest

from serve.settings import REPOSITORY

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]


def test_the_bound_is_below_the_full_divergence_and_the_estimate_near_it():
    done = subprocess.run(
        [sys.executable, "-m", "scripts.quality.bound", "--texts", "4", "--no-record"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for told in json.loads(done.stdout).values():
        assert 0 < told["lumped"] < told["full"]
        # One draw at each of a few hundred places, the same ones each time.
        assert told["drawn"] == pytest.approx(told["full"], rel=0.2)
