"""What a process writes, as lines: bounded, whatever it is."""

import asyncio
from collections.abc import AsyncIterator

TAIL_LINES = 400
# A line longer than this is cut in pieces: an engine that writes garbage must not fill memory.
LINE_BYTES = 64 * 1024


async def read_lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines of ``stream`` however they end, less empty ones; long ones in pieces.

    No piece is longer than twice ``LINE_BYTES``.
    """
    pending = b""
    while chunk := await stream.read(LINE_BYTES):
        *lines, pending = (pending + chunk).replace(b"\r", b"\n").split(b"\n")
        if len(pending) > LINE_BYTES:
            lines.append(pending)
            pending = b""
        for line in lines:
            if line.strip():
                yield line.decode(errors="replace")
    if pending.strip():
        yield pending.decode(errors="replace")
