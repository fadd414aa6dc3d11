"""A fork server of fake engines, as ``serve.plugin.zygote`` is one of vLLM's.

python fake_zygote.py [--fail | --fail-while-waited-for | --slow S] SOCKET
"""

import os
import runpy
import select
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from serve.forkserver import ForkServer


def become(argv: Sequence[str], env: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    sys.argv = list(argv[1:])
    try:
        runpy.run_path(argv[1], run_name="__main__")
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(int(end.code or 0))


def main(arguments: list[str]) -> None:
    *switches, path = arguments
    if "--fail" in switches:
        print("ImportError: no module named vllm", flush=True)
        sys.exit(3)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        if "--fail-while-waited-for" in switches:
            select.select([listener], [], [])
            print("MemoryError: while vllm was imported", flush=True)
            sys.exit(4)
        if "--slow" in switches:
            time.sleep(float(switches[-1]))
        ForkServer(listener, become).run()


if __name__ == "__main__":
    main(sys.argv[1:])
