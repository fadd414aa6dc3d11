"""The queue to the worker fits a container's shared memory, and a larger message still arrives."""

import json
from typing import Any

import pytest

from serve.command import EARLY
from tests.serve.plugin.fresh import python

pytestmark = pytest.mark.torch

MIB = 2**20
# What a container has in /dev/shm, for both queues.
CONTAINER_BYTES = 64 * MIB

# A writer and a forked reader, as core and worker are. Prints what the queue takes of /dev/shm and
# the lengths that arrived of messages of the given ones, each with what it began and ended with.
QUEUE = """
import json, os, pickle, sys
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from serve.plugin import shared_queue
if sys.argv[1] == "patched": shared_queue.apply()
lengths = [*map(int, sys.argv[2:])]
(hear, tell), (result, report) = os.pipe(), os.pipe()
if not (reader := os.fork()):
    os.close(tell)
    with os.fdopen(hear, "rb") as pipe: handle = pickle.load(pipe)
    queue = MessageQueue.create_from_handle(handle, 0)
    queue.wait_until_ready()
    got = [queue.dequeue(timeout=60) for _ in lengths]
    os.write(report, json.dumps([[len(m), m[:1].hex(), m[-1:].hex()] for m in got]).encode())
    os._exit(0)
os.close(report)
queue = MessageQueue(1, 1)
with os.fdopen(tell, "wb") as pipe: pickle.dump(queue.export_handle(), pipe)
queue.wait_until_ready()
for number, length in enumerate(lengths):
    queue.enqueue(bytes([number]) * length, timeout=60)
with os.fdopen(result) as pipe: got = json.loads(pipe.read())
os.waitpid(reader, 0)
size = os.stat("/dev/shm/" + queue.buffer.shared_memory.name).st_size
print(json.dumps({"bytes": size, "got": got, "needed": shared_queue.needed()}))
"""


def queue(*arguments: str) -> dict[str, Any]:
    done = python(QUEUE, EARLY, *arguments)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_queue_is_still_larger_than_a_containers_shared_memory_without_the_patch() -> None:
    """Fails when ``shared_queue`` is no longer needed: then delete the patch."""
    code = "from serve.plugin import shared_queue as q; print(q.needed(), q._default())"
    needed, default = python(code, EARLY).stdout.splitlines()[-1].split()
    assert needed == "True"
    assert 10 * int(default) > CONTAINER_BYTES


def test_with_the_patch_both_queues_fit_and_a_message_of_any_size_arrives() -> None:
    lengths = (1, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 30 * MIB, 5)
    said = queue("patched", *map(str, lengths))
    assert said["bytes"] < 21 * MIB
    assert 2 * said["bytes"] < CONTAINER_BYTES
    assert said["got"] == [[n, f"{i:02x}", f"{i:02x}"] for i, n in enumerate(lengths)]
    assert not said["needed"]
