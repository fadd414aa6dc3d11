"""Lets an engine start where /dev/shm has the 64 MiB that a container gets by default.

The CPU backend always has a worker process and two queues in shared memory: requests, whose size
is a variable of vLLM's (``serve.command``), and answers, at ten chunks of 24 MiB, which is none
(``shm_broadcast.MessageQueue``). A message larger than its chunk goes by socket.
"""

import inspect

CHUNK_BYTES = 2 * 2**20
PARAMETER = "max_chunk_bytes"


def needed() -> bool:
    """Whether this is the CPU build and its queues are larger."""
    import torch

    return torch.version.cuda is None and _default() > CHUNK_BYTES


def apply() -> None:
    """Make chunks of ``CHUNK_BYTES`` the default."""
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    init = MessageQueue.__init__
    optional = [p for p in inspect.signature(init).parameters.values() if p.default is not p.empty]
    values = {p.name: p.default for p in optional} | {PARAMETER: CHUNK_BYTES}
    init.__defaults__ = tuple(values.values())


def _default() -> int:
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    return int(inspect.signature(MessageQueue.__init__).parameters[PARAMETER].default)
