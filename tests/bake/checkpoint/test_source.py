"""Whatever bytes come from, a range of them is the same; a server is held to what it said."""

import contextlib
import hashlib
import io
import os
import socket
import threading

import pytest

from bake.checkpoint import gguf, remote, safetensors
from bake.checkpoint.limits import ParseLimits
from bake.checkpoint.remote import Ranges
from bake.checkpoint.source import Bytes, Seekable, mapped
from bake.errors import BakeError, Malformed
from tests.bake.checkpoint import sources
from tests.bake.checkpoint.test_gguf import sample as gguf_sample
from tests.bake.checkpoint.test_gguf import vocabulary
from tests.bake.checkpoint.test_safetensors import sample as safetensors_sample

RAW = bytes(range(256)) * 8
# Each format's parser, and a file of it. Others join here.
FORMATS = {
    "safetensors": (safetensors.parse, safetensors_sample),
    "gguf": (gguf.parse, gguf_sample),
}


@pytest.mark.parametrize("kind", sources.KINDS)
def test_a_range_is_the_same_from_everywhere_and_none_beyond_is_given(kind, tmp_path):
    with sources.source(kind, RAW, tmp_path) as source:
        assert source.size == len(RAW)
        for begin, end in ((0, 0), (0, 2048), (5, 300), (2047, 2048), (2048, 2048)):
            assert bytes(source.read(begin, end)) == RAW[begin:end]
        for begin, end in ((0, 2049), (-1, 4), (5, 4), (2**63, 2**63 + 1)):
            with pytest.raises(Malformed):
                source.read(begin, end)


@pytest.mark.parametrize("kind", sources.KINDS)
def test_an_empty_file_is_empty(kind, tmp_path):
    with sources.source(kind, b"", tmp_path) as source:
        assert (source.size, bytes(source.read(0, 0))) == (0, b"")
        for parse, _ in FORMATS.values():
            with pytest.raises(Malformed):
                parse(source)


@pytest.mark.parametrize("kind", sources.KINDS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_holds_the_same_from_everywhere(name, kind, tmp_path):
    parse, sample = FORMATS[name]
    raw = sample()
    with sources.source(kind, raw, tmp_path) as source:
        assert parse(source) == parse(Bytes(raw))


@pytest.mark.parametrize("kind", sources.KINDS)
def test_a_vocabulary_beyond_the_first_window_is_the_same_from_everywhere(kind, tmp_path):
    raw, tokens = vocabulary(30_000)
    with sources.source(kind, raw, tmp_path) as source:
        contents = gguf.parse(source)
        assert contents == gguf.parse(Bytes(raw))
        assert gguf.values(source, contents.metadata["tokenizer.ggml.tokens"]) == tokens


def test_a_file_that_shrinks_while_it_is_read_is_said_so(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(RAW)
    with path.open("rb") as file:
        source = Seekable(file)
        path.write_bytes(RAW[:100])
        with pytest.raises(Malformed, match="ends at 100, was 2048"):
            source.read(50, 200)


def test_a_mapped_file_that_somebody_writes_to_is_said_so(tmp_path):
    path = tmp_path / "file"
    for change in ("times", "size", "bytes"):
        path.write_bytes(RAW)
        with mapped(path) as source:
            source.check()
            assert source.sha256(lambda: False) == hashlib.sha256(RAW).hexdigest()
            assert source.sha256(lambda: True) == ""
            told = path.stat()
            if change == "size":
                os.truncate(path, 100)
            elif change == "bytes":
                with path.open("r+b") as file:
                    file.write(b"x")
            # As cp -p has it: the last change of the file itself still tells.
            os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
            with pytest.raises(BakeError, match="changed while it was read"):
                source.check()


@pytest.mark.parametrize("end", [8191, 8192, 9000, 1 << 40])
def test_more_than_a_file_has_can_be_forgotten(tmp_path, end):
    (tmp_path / "file").write_bytes(bytes(5000))
    with mapped(tmp_path / "file") as source:
        source.forget(4000, end)
        source.forget(4998, end)


def test_what_is_no_plain_file_is_not_mapped(tmp_path):
    with pytest.raises(BakeError, match="cannot be read"), mapped(tmp_path / "gone"):
        pass
    with pytest.raises(BakeError, match="cannot be read"), mapped(tmp_path):
        pass


def test_a_short_read_is_read_on():
    class Dripping(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 3))

    assert bytes(Seekable(Dripping(RAW)).read(1, 100)) == RAW[1:100]


def test_a_large_file_is_asked_for_in_few_ranges_and_never_whole():
    raw = safetensors_sample() + bytes(0)
    large = gguf_sample(bytes(4 * 1024**2))
    with sources.Server(large) as server:
        source = Ranges(server.url)
        gguf.parse(source)
        assert server.asked == [(0, remote.AHEAD)]
        assert source.requests == 1
        # Near the end: what lies in front of it is there too.
        source.read(len(large) - 22, len(large))
        source.read(len(large) - 60_000, len(large) - 22)
        assert server.asked[1:] == [(len(large) - remote.AHEAD, len(large))]
    with sources.Server(raw) as server:
        safetensors.parse(Ranges(server.url))
        assert server.asked == [(0, len(raw))]


def test_an_address_is_told_without_its_token():
    with sources.Server(RAW) as server:
        assert Ranges(server.url).name == server.url.partition("?")[0]


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://a/b", "http://", "//a", "http://[", ""]
)
def test_what_is_no_address_of_a_web_server_is_refused(url):
    with pytest.raises(BakeError, match="no address"):
        Ranges(url)


def test_an_address_that_no_request_can_have_is_refused():
    for url in ("http://127.0.0.1:x/", "http://127.0.0.1:1/a b", "http://127.0.0.1:1/é"):
        with pytest.raises(BakeError):
            Ranges(url)


def whole(server, handler):
    server.say(handler, 200, server.raw)


def packed(server, handler):
    server.say(handler, 206, b"x", **{"Content-Range": "bytes 0-0/9", "Content-Encoding": "gzip"})


def elsewhere(server, handler):
    server.say(handler, 302, b"", Location="ftp://127.0.0.1/etc/passwd")


def to_a_file(server, handler):
    server.say(handler, 302, b"", Location="file:///etc/passwd")


def gone(server, handler):
    server.say(handler, 404, b"")


def another(server, handler):
    server.say(handler, 206, b"x", **{"Content-Range": "bytes 1-1/9"})


def nonsense(server, handler):
    server.say(handler, 206, b"x", **{"Content-Range": f"bytes 0-{'9' * 40}/*"})


def short(server, handler):
    told = {"Content-Range": "bytes 0-2047/2048", "Content-Length": "2048"}
    server.say(handler, 206, b"x" * 9, **told)
    handler.close_connection = True


def no_protocol(server, handler):
    handler.wfile.write(b"\xff\xff\r\n\r\n")
    handler.close_connection = True


BAD = {
    whole: "does not give ranges",
    packed: "packs what it gives",
    elsewhere: "no address",
    to_a_file: "says 302",
    gone: "says 404",
    another: "asked for bytes",
    nonsense: "does not give ranges",
    short: "early",
    no_protocol: "BadStatusLine",
}


@pytest.mark.parametrize("behaviour", BAD, ids=lambda one: one.__name__)
def test_a_server_that_does_something_else_is_refused_in_words(behaviour):
    with sources.Server(RAW) as server:
        server.instead = lambda handler: (behaviour(server, handler), True)[1]
        with pytest.raises(BakeError, match=BAD[behaviour]):
            Ranges(server.url)


def test_a_redirect_to_a_web_server_is_followed_with_its_range():
    with sources.Server(RAW) as first, sources.Server(RAW) as second:
        first.instead = lambda handler: (first.say(handler, 302, b"", Location=second.url), True)[1]
        assert bytes(Ranges(first.url).read(7, 99)) == RAW[7:99]
        assert second.asked == [(0, len(RAW))]


@pytest.mark.parametrize("change", ["tag", "size"])
def test_a_file_that_changes_between_two_ranges_is_refused(change):
    with sources.Server(bytes(4 * remote.AHEAD)) as server:
        source = Ranges(server.url)
        if change == "tag":
            server.tag = '"two"'
        else:
            server.raw += b"x"
        with pytest.raises(BakeError, match="changed while"):
            source.read(2 * remote.AHEAD, 2 * remote.AHEAD + 1)


def test_no_more_is_taken_than_may_be():
    with sources.Server(bytes(4096)) as server:
        source = Ranges(server.url, ParseLimits(allocation_bytes=1000))
        with pytest.raises(Malformed, match="more than 1000"):
            source.read(0, 1001)


def test_a_server_that_drips_or_is_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(remote, "SILENCE", 0.2)
    monkeypatch.setattr(remote, "RANGE", 0.1)
    stop = threading.Event()

    def drip(handler):
        server.say(handler, 206, b"", **{"Content-Range": "bytes 0-8/9", "Content-Length": "9"})
        for _ in range(8):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            if stop.wait(0.05):
                break
        return True

    with sources.Server(RAW) as server:
        server.instead = drip
        with pytest.raises(BakeError, match="too slow"):
            Ranges(server.url)
        stop.set()
    monkeypatch.setattr(remote, "RANGE", 60.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(BakeError, match="timed out"):
            Ranges(url)


def headers(handler):
    handler.wfile.write(b"HTTP/1.1 206 P\r\nX: ")


def redirects(handler):
    handler.wfile.write(b"HTTP/1.1 302 F\r\nLocation: /\r\nX: ")


@pytest.mark.parametrize("beginning", [headers, redirects])
def test_a_server_that_drips_its_headers_is_given_up(monkeypatch, beginning):
    monkeypatch.setattr(remote, "RANGE", 0.2)
    stop = threading.Event()

    def drip(handler):
        beginning(handler)
        with contextlib.suppress(ConnectionError):
            while not stop.wait(0.02):
                handler.wfile.write(b"x")
                handler.wfile.flush()
        return True

    with sources.Server(RAW) as server:
        server.instead = drip
        try:
            with pytest.raises(BakeError, match="too slow"):
                Ranges(server.url)
        finally:
            stop.set()


def test_a_redirects_page_is_not_read_without_an_end(monkeypatch):
    monkeypatch.setattr(remote, "BESIDE", 64 * 1024)

    def endless(handler):
        handler.wfile.write(b"HTTP/1.1 302 F\r\nLocation: /\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                handler.wfile.write(bytes(64 * 1024))

    with sources.Server(RAW) as server:
        server.instead = endless
        with pytest.raises(BakeError, match="more than was asked for"):
            Ranges(server.url)


def test_a_server_that_is_not_there_is_told():
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    with pytest.raises(BakeError, match="refused"):
        Ranges(url)
