"""Imports vLLM once and forks engines off it, so that a start imports once or not at all.

    python -m serve.plugin.zygote [ARCHITECTURE…] SOCKET

Front end, engine core and worker import the same modules one after the other, and that is most
of a start from a baked cache. Here they are imported once; an engine is a fork, and its core and
worker are forks of it. A second start imports nothing.
"""

import atexit
import contextlib
import gc
import importlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn

from serve.forkserver import ForkServer
from serve.plugin import foresight
from serve.plugin.aside import Aside

# What the three processes of an engine on a CPU import, in the order that a start needs it.
MODULES = (
    "torch._inductor.codecache",
    "vllm.engine.arg_utils",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.entrypoints.launchers.api_server.entry",
)
# What the front end imports once its core is ready. It waits for the core for longer than these
# take, so a thread of it imports them meanwhile.
ROUTES = (
    "vllm.renderers.hf",
    "vllm.entrypoints.generate.api_router",
    "vllm.entrypoints.generate.generative_scoring.api_router",
    "vllm.entrypoints.generate.structured_decisions.api_router",
    "vllm.entrypoints.openai.chat_completion.api_router",
    "vllm.entrypoints.openai.completion.api_router",
    "vllm.entrypoints.openai.responses.api_router",
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.cohere.api_router",
    "vllm.entrypoints.scale_out.derender.api_router",
    "vllm.entrypoints.scale_out.render.api_router",
    "vllm.entrypoints.scale_out.token_in_token_out.api_router",
    "vllm.entrypoints.serve.profile.api_router",
    "vllm.entrypoints.serve.tokenize.api_router",
    "model_hosting_container_standards.sagemaker",
    "uvicorn.protocols.http.httptools_impl",
)
# serve.command.ENTRY names the engine's module after the interpreter and ``-m``.
FIRST_FLAG = 3


def main(arguments: list[str]) -> int:
    """Import, then fork on request until SIGTERM and until no fork is left."""
    *architectures, path = arguments
    with socket.socket(socket.AF_UNIX) as listener:
        # Before the imports: who comes early waits for `ready`, and sees the end if we fail.
        listener.bind(path)
        listener.listen()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        preload(architectures)
        ForkServer(listener, become).run()
    return 0


def preload(architectures: Sequence[str]) -> None:
    """Import everything and compute what every start computes anew."""
    # A collector that walks half a million new objects again and again frees nothing here.
    gc.disable()
    foresight.begin()
    importlib.import_module(MODULES[0])
    keys = Aside(_source_digests)
    for name in (*MODULES[1:], *_model_modules(architectures)):
        importlib.import_module(name)
    _know(keys.result())
    import setproctitle

    # Finds where to write a process's title by its first environment, which the forks replace.
    setproctitle.getproctitle()
    # Out of reach of the forks' collectors, so the pages stay shared.
    gc.freeze()
    gc.enable()


def _source_digests() -> tuple[object, object]:
    """The two digests, over all of torch's and Triton's files, that stand in every key."""
    from torch._inductor.codecache import torch_key, triton_key

    return torch_key(), triton_key()


def _know(digests: tuple[object, object] | None) -> None:
    from torch._inductor.codecache import torch_key, triton_key

    for ask, digest in zip((torch_key, triton_key), digests or (), strict=False):
        ask.set(digest)


def _model_modules(architectures: Sequence[str]) -> list[str]:
    from vllm.model_executor.models.registry import ModelRegistry

    known = (ModelRegistry.models.get(name) for name in architectures)
    return [entry.module_name for entry in known if hasattr(entry, "module_name")]


def become(argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Be the engine that ``argv`` would execute under ``env``."""
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [argv[FIRST_FLAG - 1], *argv[FIRST_FLAG:]]
    _fork_children()
    _import_routes_beside_the_core()
    status = 1
    try:
        importlib.import_module(argv[FIRST_FLAG - 1]).main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    _leave(status)


def _fork_children() -> None:
    """Have core and worker forked too, where vLLM would spawn them and import everything again.

    vLLM forks them wherever it can. On CPUs it spawns, for OpenMP to read the binding of cores
    that is set for the worker. Intel's OpenMP, which the CPU target preloads, reads it in a fork
    too.
    """
    import vllm.v1.engine.utils
    import vllm.v1.executor.multiproc_executor

    fork = multiprocessing.get_context("fork")
    for module in (vllm.v1.engine.utils, vllm.v1.executor.multiproc_executor):
        module.get_mp_context = lambda: fork


def _import_routes_beside_the_core() -> None:
    front_end = os.getpid()
    begun = threading.Event()

    def begin() -> None:
        # Not before the core is forked: a thread that holds a lock then would leave it locked.
        if os.getpid() == front_end and not begun.is_set():
            begun.set()
            threading.Thread(target=_import_routes, daemon=True).start()

    os.register_at_fork(after_in_parent=begin)


def _import_routes() -> None:
    for name in ROUTES:
        # One that is not there is not needed, or fails where vLLM itself asks for it.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _leave(status: int) -> NoReturn:
    """End as an interpreter does, but for freeing what we share with our parent."""
    # Private, and the only way: os._exit calls no handler, sys.exit would return to the keeper.
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
