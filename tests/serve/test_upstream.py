"""The engine's socket as a client: against servers that answer as told, byte by byte."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve import upstream as module
from serve.upstream import Connection, Lost, Unreachable, Upstream, request_head

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Server:
    """Sends its pieces, one list for each request, and closes when there are no more."""

    def __init__(self, *answers: list[bytes]) -> None:
        self.answers = list(answers)
        self.asked: list[bytes] = []
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while self.answers:
            try:
                self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            except asyncio.IncompleteReadError:
                break
            for piece in self.answers.pop(0):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()


@asynccontextmanager
async def listening(handler: Handler, folder: Path) -> AsyncIterator[Upstream]:
    path = str(folder / "s")
    server = await asyncio.start_unix_server(handler, path)
    upstream = Upstream(path)
    try:
        yield upstream
    finally:
        upstream.close()
        server.close()
        await server.wait_closed()


async def ask(upstream: Upstream, method: str = "GET") -> Connection:
    return await upstream.ask(method, b"/x", [], b"")


async def rest(connection: Connection) -> bytes:
    try:
        parts = [await connection.read()]
        while not connection.ended:
            parts.append(await connection.read())
        return b"".join(parts)
    finally:
        connection.leave()


async def test_an_answer_comes_with_status_headers_and_body(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 404 Not Found\r\nX-One: 1\r\nx-one: 2\r\ncontent-length: 2\r\n\r\nno"
    async with listening(Server([answer]), tmp_path) as upstream:
        connection = await ask(upstream)
        assert connection.status == 404
        assert connection.headers[:2] == [(b"x-one", b"1"), (b"x-one", b"2")]
        assert await rest(connection) == b"no"


async def test_a_connection_is_used_again_and_a_closed_one_is_not(tmp_path: Path) -> None:
    server = Server([WHOLE], [WHOLE], [WHOLE])
    async with listening(server, tmp_path) as upstream:
        for _ in range(2):
            assert await rest(await ask(upstream)) == b"hello"
        assert server.connections == 1
        closing = [b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"]
        server.answers[:] = [closing, [WHOLE]]
        assert await rest(await ask(upstream)) == b""
        assert await rest(await ask(upstream)) == b"hello"
        assert server.connections == 2


async def test_an_answer_that_was_read_is_its_readers_until_it_leaves(tmp_path: Path) -> None:
    # Else the next to ask would get the same connection, and the first would read its answer.
    server = Server([WHOLE], [WHOLE], [WHOLE])
    async with listening(server, tmp_path) as upstream:
        first = await ask(upstream)
        assert await first.read() == b"hello"
        second = await ask(upstream)
        assert second is not first
        assert first.ended
        assert await rest(second) == b"hello"
        first.leave()
        third = await ask(upstream)
        assert third is first
        third.leave()


async def test_one_that_was_idle_for_long_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server([WHOLE], [WHOLE], [WHOLE])
    async with listening(server, tmp_path) as upstream:
        await rest(await ask(upstream))
        monkeypatch.setattr(module, "IDLE_SECONDS", -1.0)
        await rest(await ask(upstream))
        assert server.connections == 2


async def test_chunks_come_as_they_are_read_and_trailers_after_them(tmp_path: Path) -> None:
    pieces = [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n",
        b"3\r\none\r\n",
        b"3\r\ntwo\r\n0\r\nx-sum: 6\r\n\r\n",
    ]
    async with listening(Server(pieces), tmp_path) as upstream:
        connection = await ask(upstream)
        assert await rest(connection) == b"onetwo"
        assert connection.trailers == [(b"x-sum", b"6")]


async def test_head_has_a_length_and_no_body(tmp_path: Path) -> None:
    server = Server([b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"], [WHOLE])
    async with listening(server, tmp_path) as upstream:
        connection = await ask(upstream, "HEAD")
        assert (connection.status, connection.ended) == (200, True)
        assert await rest(connection) == b""
        assert await rest(await ask(upstream)) == b"hello"


async def test_what_comes_before_the_answer_is_passed_over(tmp_path: Path) -> None:
    pieces = [b"HTTP/1.1 100 Continue\r\nx-a: 1\r\n\r\n", WHOLE]
    async with listening(Server(pieces), tmp_path) as upstream:
        connection = await ask(upstream)
        assert connection.status == 200
        assert connection.headers == [(b"content-length", b"5")]
        assert await rest(connection) == b"hello"


async def test_without_a_length_the_end_of_the_connection_is_the_end(tmp_path: Path) -> None:
    async with listening(Server([b"HTTP/1.1 200 OK\r\n\r\nall of it"]), tmp_path) as upstream:
        assert await rest(await ask(upstream)) == b"all of it"


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b"HTTP/1.1 200 OK\r\n"],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel"],
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n"],
        [b"no HTTP at all\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"],
    ],
)
async def test_an_answer_that_is_not_whole_is_lost(pieces: list[bytes], tmp_path: Path) -> None:
    async with listening(Server(pieces), tmp_path) as upstream:
        with pytest.raises(Lost):
            await rest(await ask(upstream))


async def test_an_answer_to_nothing_is_nobodys(tmp_path: Path) -> None:
    server = Server([WHOLE + WHOLE.replace(b"hello", b"other")], [WHOLE], [WHOLE])
    async with listening(server, tmp_path) as upstream:
        assert await rest(await ask(upstream)) == b"hello"
        await asyncio.sleep(0.01)
        assert await rest(await ask(upstream)) == b"hello"
        assert server.connections == 2


async def test_nobody_there_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="cannot connect: No such file"):
        await ask(Upstream(str(tmp_path / "nobody")))


async def test_a_dropped_connection_is_closed_at_once(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        await reader.read()
        left.set()
        writer.close()

    async with listening(endless, tmp_path) as upstream:
        connection = await ask(upstream)
        assert await connection.read() == b"a"
        connection.drop()
        await left.wait()


async def test_a_reader_that_does_not_read_holds_up_the_sender(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 1000)
    sent = 0
    body = b"x" * 4_000_000

    async def large(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 10_000):
            writer.write(body[at : at + 10_000])
            await writer.drain()
            sent += 10_000
        await reader.read()
        writer.close()

    async with listening(large, tmp_path) as upstream:
        connection = await ask(upstream)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.05)
        assert sent < len(body) / 2
        assert await rest(connection) == body


async def test_a_small_answer_is_fetched_whole_or_in_time_not_at_all(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with listening(Server([WHOLE]), tmp_path) as upstream:
        assert await upstream.fetch("GET", b"/x", seconds=9) == (200, b"hello")
    (tmp_path / "s").unlink(missing_ok=True)
    async with listening(silent, tmp_path) as upstream:
        with pytest.raises(Lost, match=r"no answer in 0\.01 s"):
            await upstream.fetch("GET", b"/x", seconds=0.01)


def test_a_request_says_its_length_where_it_may_have_a_body() -> None:
    assert request_head("POST", b"/x?y", [(b"a", b"b")], 2) == (
        b"POST /x?y HTTP/1.1\r\nhost: engine\r\na: b\r\ncontent-length: 2\r\n\r\n"
    )
    assert request_head("POST", b"/", [], 0).endswith(b"content-length: 0\r\n\r\n")
    assert b"content-length" not in request_head("GET", b"/", [], 0)


CUTS = st.lists(st.integers(1, 40), max_size=30)


@settings(max_examples=60)
@given(CUTS, st.lists(st.binary(min_size=1, max_size=20), max_size=8))
def test_any_cut_of_any_chunks_is_the_same_body(cuts: list[int], chunks: list[bytes]) -> None:
    raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    raw += b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"

    async def fed() -> bytes:
        connection = Connection(module.deque())
        connection._asked = True
        data, parts = raw, []
        for cut in [*cuts, len(raw)]:
            connection.data_received(data[:cut])
            data = data[cut:]
            while connection._pieces:
                parts.append(await connection.read())
        return b"".join([*parts, b"" if connection.ended else await connection.read()])

    assert asyncio.run(fed()) == b"".join(chunks)
