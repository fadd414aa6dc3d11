"""A Ray of one machine with the application on it, told what to do by lines on its standard input.

    driver.py PORT ARGUMENTS_AS_JSON      run by Ray's own environment, in the repository's root

Answers each line with one of JSON: {"ready": …}, then of `replicas`, `scale N`, `kill N`, `stop`.
"""

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray import serve

from deploy.ray.appliance import Arguments, app

# Ray's own words go to where errors do.
OUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

NAME, DEPLOYMENT = "default", "Appliance"


def main() -> None:
    port, said = int(sys.argv[1]), json.loads(sys.argv[2])
    arguments = Arguments.model_validate(said)
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(
            num_cpus=8,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            # Sockets below it: a path has 107 bytes.
            _temp_dir=folder,
            runtime_env={"env_vars": {"PYTHONPATH": str(Path.cwd())}},
        )
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app(arguments), name=NAME)
        tell({"ready": True})
        for line in sys.stdin:
            word, *more = line.split()
            if word == "stop":
                break
            tell({"replicas": replicas, "scale": scale, "kill": kill}[word](arguments, *more))
        serve.shutdown()
        ray.shutdown()
    tell({"stopped": True})


def replicas(_: Arguments) -> list[int]:
    """Processes of those that run."""
    return [one["pid"] for one in running()]


def scale(arguments: Arguments, count: str) -> list[int]:
    """Another number of replicas, once it is so."""
    wanted = int(count)
    fixed = arguments.model_copy(update={"min_replicas": wanted, "max_replicas": wanted})
    serve.run(app(fixed), name=NAME)
    while len(running()) != wanted:
        time.sleep(0.2)
    return [one["pid"] for one in running()]


def kill(_: Arguments, number: str) -> int:
    """SIGKILL to one replica."""
    pid: int = running()[int(number)]["pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


def running() -> list[dict[str, Any]]:
    from ray.serve.context import _get_global_client

    details = _get_global_client().get_serve_details()
    found = details["applications"][NAME]["deployments"][DEPLOYMENT]["replicas"]
    return [one for one in found if one["state"] == "RUNNING"]


def tell(what: object) -> None:
    print(json.dumps(what), file=OUT, flush=True)


if __name__ == "__main__":
    main()
