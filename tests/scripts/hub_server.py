"""A process that speaks the hub's API over one folder: ``python hub_server.py FOLDER [FAULT]``.

Prints its port, then one line a request: method, path, Range, status. The commit is what the file
``FOLDER.commit`` says, if there is one. Faults: ``break`` ends the first transfer of each LFS file
half way; ``lie`` sends other bytes than it tells; a number is the status of every answer.
"""

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER, FAULT = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
NAMED = FOLDER.with_suffix(".commit")
COMMIT = NAMED.read_text() if NAMED.exists() else "c0ffee" + "0" * 34
broken: set[str] = set()


def git(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sibling(path):
    data = path.read_bytes()
    item = {"rfilename": path.relative_to(FOLDER).as_posix(), "size": len(data)}
    item["blobId"] = git(data)
    if path.suffix == ".safetensors":
        item["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        item["lfs"]["pointerSize"] = 134
    return item


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        path = self.path.partition("?")[0]
        if FAULT.isdigit():
            return self.send(int(FAULT), b"{}", {}, body)
        if path.startswith("/api/models/"):
            if not path.startswith("/api/models/some/model/revision/"):
                return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            if path.rpartition("/")[2] not in ("main", COMMIT):
                return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            files = sorted(p for p in FOLDER.rglob("*") if p.is_file())
            told = {"id": "some/model", "sha": COMMIT, "siblings": [sibling(p) for p in files]}
            return self.send(200, json.dumps(told).encode(), {}, body)
        return self.file(path.partition(f"/resolve/{COMMIT}/")[2], body)

    def file(self, name, body):
        data = (FOLDER / name).read_bytes()
        lfs = name.endswith(".safetensors")
        etag = hashlib.sha256(data).hexdigest() if lfs else git(data)
        facts = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if lfs:
            facts |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        if FAULT == "lie":
            data = data[:-1] + b"?"
        begin = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        status = 206 if self.headers.get("Range") else 200
        if status == 206:
            facts["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        half = FAULT == "break" and lfs and body and name not in broken
        if half:
            broken.add(name)
        return self.send(status, data[begin:], facts, body, half=half)

    def send(self, status, data, facts, body, *, half=False):
        print(self.command, self.path, self.headers.get("Range", "-"), status, flush=True)
        self.send_response(status)
        for name, value in {**facts, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_):
        """Told by ``send``."""


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
print(server.server_port, flush=True)
server.serve_forever()
