"""The same bytes as every kind of source: mapped, in memory, a file that seeks, a web server's."""

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bake.checkpoint.remote import Ranges
from bake.checkpoint.source import Bytes, Seekable, Source, mapped

KINDS = ("mapped", "bytes", "seekable", "http")


@contextlib.contextmanager
def source(kind: str, raw: bytes, folder: Path) -> Iterator[Source]:
    """``raw`` as one of ``KINDS``."""
    path = folder / "file"
    path.write_bytes(raw)
    if kind == "mapped":
        with mapped(path) as one:
            yield one
    elif kind == "bytes":
        yield Bytes(raw)
    elif kind == "seekable":
        with path.open("rb") as file:
            yield Seekable(file)
    else:
        with Server(raw) as server:
            yield Ranges(server.url)


class Server:
    """A web server on loopback that holds one file and knows ranges; ``asked`` are those."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.tag = '"one"'
        self.asked: list[tuple[int, int]] = []
        # Answers something else, where it is set.
        self.instead = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/a/file?token=secret"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if self.instead and self.instead(handler):
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers["Range"])
        begin, end = int(found[1]), min(int(found[2]) + 1, len(self.raw))
        if begin >= len(self.raw):
            self.say(handler, 416, b"", **{"Content-Range": f"bytes */{len(self.raw)}"})
            return
        self.asked.append((begin, end))
        told = f"bytes {begin}-{end - 1}/{len(self.raw)}"
        self.say(handler, 206, self.raw[begin:end], **{"Content-Range": told})

    def say(self, handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "ETag": self.tag, **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        with contextlib.suppress(ConnectionError):
            handler.wfile.write(body)
