"""Connections of clients that send too much, too slowly, or something else than HTTP."""

import asyncio
import contextlib
import hashlib
import logging
import re
import socket
import time
from collections.abc import Callable
from http.client import HTTPResponse
from urllib.parse import urlsplit

import pytest

from tests.serve.live import Gateway, wait_for
from tests.serve.wired import (
    MIB,
    Served,
    answers,
    chunked,
    get,
    only,
    post,
    relay,
    reset,
    rest,
    serving,
)

CLOSE = "Connection: close"


def refused(served: Served, data: bytes, status: int, code: str) -> None:
    """``data`` is one refusal that says the connection ends."""
    answer = only(data)
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/json"
    assert answer.error["code"] == code
    assert answer.error["src"] == "gateway"
    assert served.refused == [code]


# Heads.


@pytest.mark.parametrize("size", [1, 7, 4096, 5000])
def test_a_request_may_come_in_pieces_of_any_size(size: int) -> None:
    request = post("/a%20b?x=1", b"y" * 300, CLOSE, "X-Long: " + "z" * 9000)
    pieces = [request[at : at + size] for at in range(0, len(request), size)]
    with serving() as served:
        said = only(served.talk(*pieces)).said
    assert said["path"] == "/a b"
    assert said["body"] == "y" * 300
    assert ["x-long", "z" * 9000] in said["headers"]


LARGE = {
    "one header": get("/", "X: " + "a" * 70_000),
    "one name": get("/", "a" * 70_000 + ": x"),
    "the target": get("/" + "a" * 70_000),
    "many headers": get("/", *(f"X-{number}: {'a' * 1000}" for number in range(70))),
    "one that never ends": b"GET / HTTP/1.1\r\nX: " + b"a" * 500_000,
    "a method that never ends": b"G" * 100_000,
}


@pytest.mark.parametrize("name", [*LARGE][:5])
@pytest.mark.parametrize("size", [1000, MIB])
def test_a_head_that_is_too_large_is_refused_and_reaches_nobody(name: str, size: int) -> None:
    request = LARGE[name]
    pieces = [request[at : at + size] for at in range(0, len(request), size)]
    with serving() as served:
        refused(served, served.talk(*pieces), 431, "headers_too_large")
        assert served.app.seen == []


def test_a_head_may_be_as_large_as_the_limit_and_no_larger() -> None:
    request = get("/", CLOSE, "X: " + "a" * 2000)
    with serving(header_bytes=len(request)) as served:
        assert only(served.talk(request)).status == 200
    with serving(header_bytes=len(request) - 1) as served:
        refused(served, served.talk(request), 431, "headers_too_large")


def test_there_may_be_as_many_headers_as_the_limit_and_no_more() -> None:
    names = [f"X-{number}: 1" for number in range(98)]
    with serving(headers=100) as served:
        assert only(served.talk(get("/", CLOSE, *names))).status == 200
        refused(served, served.talk(get("/", CLOSE, "X: 1", *names)), 431, "headers_too_large")


def test_a_large_head_counts_for_its_own_request_only() -> None:
    request = get("/", "X: " + "a" * 900)
    with serving(header_bytes=1000) as served:
        data = served.talk(*([request] * 20), get("/", CLOSE))
    assert [answer.status for answer in answers(data)] == [200] * 21


@pytest.mark.parametrize(
    "between",
    [b"1;" + b"a" * 100_000, b"1\r\nx\r\n0\r\nX: " + b"a" * 100_000, b"0" * 100_000],
    ids=["extension", "trailer", "size"],
)
def test_what_stands_between_chunks_is_as_bounded_as_a_head(between: bytes) -> None:
    with serving() as served:
        refused(served, served.talk(chunked("/"), between), 400, "malformed_request")
        wait_for(lambda: served.app.left == ["/"], "the application told")


def test_trailers_of_a_request_are_no_headers() -> None:
    body = b"5\r\nhello\r\n0\r\nAuthorization: Bearer smuggled\r\nX-Late: 1\r\n\r\n"
    with serving() as served:
        said = only(served.talk(chunked("/", CLOSE), body)).said
    assert said["body"] == "hello"
    names = [name for name, _ in said["headers"]]
    assert names == ["host", "transfer-encoding", "connection"]


# Slowness.


def test_a_head_that_does_not_become_whole_in_time_is_refused() -> None:
    with serving(head_seconds=0.2) as served:
        refused(served, served.talk(get()[:-2]), 408, "request_too_slow")


def test_a_head_of_a_later_request_has_the_time_from_its_first_byte() -> None:
    with serving(head_seconds=0.2) as served, served.connect() as connection:
        connection.sendall(get())
        wait_for(lambda: served.app.seen, "the first")
        time.sleep(0.5)
        connection.sendall(b"GET / HT")
        first, second = answers(rest(connection))
    assert first.status == 200
    assert second.status == 408


def test_a_connection_over_which_nothing_comes_is_closed_without_a_word() -> None:
    with serving(head_seconds=0.1) as served:
        assert served.talk() == b""
        assert served.refused == []


def test_a_connection_that_idles_between_requests_is_closed_without_a_word() -> None:
    with serving(keep_alive=0.1) as served:
        assert only(served.talk(get())).status == 200
        assert served.refused == []


@pytest.mark.parametrize("begun", [post("/", b"abc")[:-1], chunked("/") + b"5\r\nhe"])
def test_a_body_that_stops_coming_is_refused_and_the_application_told(begun: bytes) -> None:
    with serving(body_seconds=0.2) as served:
        refused(served, served.talk(begun), 408, "request_too_slow")
        wait_for(lambda: served.app.left == ["/"], "the application told")


def test_a_chunk_that_grows_without_data_is_no_progress() -> None:
    with serving(body_seconds=0.3) as served, served.connect() as connection:
        connection.sendall(chunked("/") + b"5;")
        with contextlib.suppress(ConnectionError):
            while not served.refused:
                connection.sendall(b"a")
                time.sleep(0.02)
        refused(served, rest(connection), 408, "request_too_slow")


def test_a_slow_body_that_keeps_coming_is_taken() -> None:
    with serving(body_seconds=1.5) as served, served.connect() as connection:
        connection.sendall(post("/", b"x" * 20, CLOSE)[:-20])
        for _ in range(20):
            connection.sendall(b"x")
            time.sleep(0.1)
        assert only(rest(connection)).said["body"] == "x" * 20


def test_a_body_that_nobody_reads_any_more_has_its_time_altogether() -> None:
    with serving(body_seconds=0.3) as served, served.connect() as connection:
        connection.sendall(post("/unread", b"x" * MIB)[:-MIB])
        with contextlib.suppress(ConnectionError):
            while served.connections or not served.app.seen:
                connection.sendall(b"x")
                time.sleep(0.02)
        assert only(rest(connection)).status == 200
        assert served.refused == []


def test_a_body_that_nobody_reads_any_more_may_not_hide_endless_trailers() -> None:
    with serving() as served, served.connect() as connection:
        connection.sendall(chunked("/unread"))
        assert only(connection.recv(MIB)).status == 200
        connection.sendall(b"0\r\nX: " + b"a" * 200_000)
        assert rest(connection) == b""
        assert served.refused == ["malformed_request"]


def test_after_a_body_that_nobody_read_the_connection_goes_on() -> None:
    with serving() as served:
        data = served.talk(post("/unread", b"x" * MIB), get("/", CLOSE))
    assert [answer.status for answer in answers(data)] == [200, 200]


def test_a_client_is_not_blamed_for_a_body_that_the_application_does_not_take() -> None:
    body = b"x" * 512 * 1024
    with serving(body_seconds=0.5) as served, served.connect() as connection:
        connection.sendall(post("/later", body, CLOSE))
        time.sleep(1)
        served.go()
        assert len(only(rest(connection)).said["body"]) == len(body)


def test_a_client_is_not_blamed_for_waiting_to_be_asked_for_its_body() -> None:
    with serving(body_seconds=0.1) as served, served.connect() as connection:
        connection.sendall(post("/later", b"hello", CLOSE, "Expect: 100-continue")[:-5])
        time.sleep(0.5)
        served.go()
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"hello")
        assert only(rest(connection)).said["body"] == "hello"


def test_an_answer_that_does_not_want_the_body_announced_ends_the_connection() -> None:
    request = post("/unread", b"hello", "Expect: 100-continue")
    with serving() as served:
        # The client may send its body or leave it out: what follows is a request or is not.
        answer = only(served.talk(request[:-5], get("/second")))
        assert answer.headers["connection"] == "close"
        assert served.app.seen == ["POST /unread"]


def test_hundreds_of_slow_clients_are_cut_off_while_a_good_one_is_served() -> None:
    with serving(head_seconds=1) as served:
        slow = [served.connect() for _ in range(300)]
        for connection in slow:
            connection.sendall(b"GET / HTTP/1.1\r\n")
        wait_for(lambda: len(served.connections) == 300, "all of them")
        with served.connect() as good:
            good.sendall(get("/good"))
            while len(served.refused) < 300:
                for connection in slow:
                    with contextlib.suppress(ConnectionError):
                        connection.sendall(b"X: 1\r\n")
                good.sendall(get("/good"))
                time.sleep(0.05)
            good.sendall(get("/good", CLOSE))
            assert {answer.status for answer in answers(rest(good))} == {200}
        assert set(served.app.seen) == {"GET /good"}
        assert set(served.refused) == {"request_too_slow"}
        for connection in slow:
            connection.close()
        wait_for(lambda: not served.connections, "all of them gone")


# Connections.


def test_a_connection_too_many_is_answered_and_room_is_made_by_the_next_that_leaves() -> None:
    with serving(connections=2) as served:
        first, second = served.connect(), served.connect()
        wait_for(lambda: len(served.connections) == 2, "both")
        data = served.talk(get())
        refused(served, data, 503, "too_many_connections")
        assert only(data).headers["retry-after"] == "2"
        first.close()
        wait_for(lambda: len(served.connections) == 1, "room")
        assert only(served.talk(get("/", CLOSE))).status == 200
        second.close()


def test_every_one_of_a_burst_of_connections_too_many_is_answered() -> None:
    with serving(connections=1) as served, served.connect() as one:
        one.sendall(get("/wait"))
        wait_for(lambda: served.app.seen, "the one")
        # More than are held until they have read it.
        burst = [served.connect() for _ in range(400)]
        assert {only(rest(connection)).status for connection in burst} == {503}
        for connection in burst:
            connection.close()
        wait_for(lambda: len(served.connections) == 1, "the rest gone")
        served.go()


def test_small_packets_are_not_held_back() -> None:
    with serving() as served, served.connect() as connection:
        connection.sendall(get("/wait"))
        wait_for(lambda: served.app.seen, "the request")
        (wire,) = served.connections
        accepted = wire.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        served.go()


def test_a_client_that_resets_mid_head_leaves_nothing_behind() -> None:
    with serving() as served:
        for _ in range(20):
            connection = served.connect()
            connection.sendall(get()[:-2])
            reset(connection)
        wait_for(lambda: not served.connections, "all gone")
        assert served.refused == served.app.seen == []
        assert only(served.talk(get("/", CLOSE))).status == 200


# Readers.


def test_an_application_waits_for_a_reader_who_does_not_read() -> None:
    with serving(write_buffer=MIB) as served, served.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(get("/large", CLOSE))
        wait_for(lambda: served.connections and served.connections[0].flow.write_paused, "full")
        # What waits here, and what the two kernels hold.
        assert served.app.taken < 16 * MIB
        assert len(rest(connection)) > 64 * MIB


@pytest.mark.parametrize("path", ["/large", "/whole"])
def test_a_reader_who_takes_nothing_is_cut_off(path: str) -> None:
    with serving(write_seconds=0.3) as served, served.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(get(path))
        wait_for(lambda: served.app.seen and not served.connections, "cut off")
        assert len(rest(connection)) < 16 * MIB


@pytest.mark.parametrize("path", ["/large", "/whole"])
def test_a_reader_who_takes_a_little_at_a_time_gets_all(path: str) -> None:
    with serving(write_seconds=1.5) as served, served.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(get(path, CLOSE))
        size = 0
        enough = time.monotonic() + 2.5
        while part := connection.recv(256 * 1024):
            size += len(part)
            if time.monotonic() < enough:
                time.sleep(0.02)
        assert size > 16 * MIB


# Pipelining.


def test_pipelined_requests_are_answered_in_order_however_many_come_at_once() -> None:
    waiting: list[int] = []
    with serving() as served:
        served.app.at_request = lambda: waiting.append(
            max(len(connection.pipeline) for connection in served.connections)
        )
        requests = [f"GET /{number} HTTP/1.1\r\n\r\n".encode() for number in range(6000)]
        with served.connect() as connection:
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
            # Both ways at once: the server reads no more than it answers.
            rest_of = memoryview(b"".join([*requests, get("/last", CLOSE)]))
            parts = []
            connection.setblocking(False)
            while rest_of or not served.app.seen or served.connections:
                with contextlib.suppress(BlockingIOError):
                    rest_of = rest_of[connection.send(rest_of) :]
                with contextlib.suppress(BlockingIOError):
                    parts.append(connection.recv(MIB))
            connection.setblocking(True)
            parts.append(rest(connection))
        found = answers(b"".join(parts))
    assert [answer.said["path"] for answer in found] == [
        *(f"/{number}" for number in range(6000)),
        "/last",
    ]
    assert max(waiting) < 300


def test_pipelined_bodies_stay_with_their_requests() -> None:
    requests = [post(f"/{size}", b"x" * size) for size in (0, 1, 5000, 300_000, 3, 70_000)]
    with serving() as served:
        found = answers(served.talk(b"".join(requests), get("/", CLOSE)))
    assert [len(answer.said["body"]) for answer in found] == [0, 1, 5000, 300_000, 3, 70_000, 0]


def test_an_application_that_asks_for_more_does_not_let_more_requests_in() -> None:
    with serving() as served, served.connect() as connection:
        connection.sendall(get("/wait") + get("/second") * 2000)
        wait_for(lambda: served.app.seen, "the first")
        (wire,) = served.connections
        # It waits for its client to leave by now, which is to read.
        time.sleep(0.2)
        assert wire.flow.read_paused
        assert len(wire.pipeline) < 300
        served.go()
        connection.sendall(get("/", CLOSE))
        assert len(answers(rest(connection))) == 2002


@pytest.mark.parametrize("rubbish", [b"\x00\x01\r\n\r\n", b"GET / HTTP/1.1\r\nX : 1\r\n\r\n"])
def test_what_was_asked_before_rubbish_is_answered_before_it_is_refused(rubbish: bytes) -> None:
    with serving() as served, served.connect() as connection:
        connection.sendall(get("/wait") + get("/second") + rubbish)
        wait_for(lambda: served.refused, "refused")
        served.go()
        found = answers(rest(connection))
    assert [answer.status for answer in found] == [200, 200, 400]
    assert found[-1].error["code"] == "malformed_request"


def test_a_request_that_breaks_off_while_it_waits_for_its_turn_is_not_begun() -> None:
    with serving() as served, served.connect() as connection:
        connection.sendall(get("/wait") + chunked("/broken") + b"zz\r\n")
        wait_for(lambda: served.refused, "refused")
        served.go()
        found = answers(rest(connection))
        assert [answer.status for answer in found] == [200, 400]
        assert served.app.seen == ["GET /wait"]


def test_a_request_that_breaks_off_mid_answer_ends_it() -> None:
    with serving() as served, served.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(chunked("/large"))
        wait_for(lambda: served.app.taken, "the answer begun")
        connection.sendall(b"zz\r\n")
        data = rest(connection)
    assert data.count(b"HTTP/1.1 ") == 1
    assert not data.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "last",
    [
        get("/last", CLOSE),
        b"GET /last HTTP/1.0\r\n\r\n",
        b"GET /last HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ],
)
def test_nothing_that_follows_a_last_request_is_run(last: bytes) -> None:
    with serving() as served:
        assert only(served.talk(last + get("/smuggled"))).said["path"] == "/last"
        assert served.app.seen == ["GET /last"]


def test_an_application_is_told_that_its_client_left_though_others_wait_behind_it() -> None:
    with serving() as served:
        connection = served.connect()
        connection.sendall(get("/wait"))
        wait_for(lambda: served.app.seen, "the first")
        connection.sendall(get("/second"))
        wait_for(lambda: served.connections[0].flow.held, "the second")
        (wire,) = served.connections
        served.loop.call_soon_threadsafe(wire.transport.abort)
        wait_for(lambda: served.app.left == ["/wait"], "told")
        connection.close()
    assert served.app.seen == ["GET /wait"]


# Upgrades.

UPGRADE = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAMAAABkAAQAAP__",
)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_request_that_asks_for_http2_is_served_with_its_body(at_once: bool) -> None:
    # Whoever takes the body for another protocol takes it for the next request, too.
    body = get("/smuggled")
    request = post("/asked", body, *UPGRADE)
    with serving() as served, served.connect() as connection:
        if at_once:
            connection.sendall(request + get("/next", CLOSE))
        else:
            connection.sendall(request[: -len(body)])
            time.sleep(0.2)
            connection.sendall(body)
            time.sleep(0.2)
            connection.sendall(get("/next", CLOSE))
        first, second = answers(rest(connection))
    assert first.said["body"].encode() == body
    assert second.said["path"] == "/next"
    assert served.app.seen == ["POST /asked", "GET /next"]


def test_a_chunked_body_survives_the_wish_for_another_protocol() -> None:
    request = chunked("/", *UPGRADE) + b"5\r\nhello\r\n0\r\n\r\n"
    with serving() as served:
        first, _ = answers(served.talk(request, get("/", CLOSE)))
    assert first.said["body"] == "hello"


def test_a_websocket_is_answered_as_the_request_that_it_is() -> None:
    wish = ("Connection: Upgrade, close", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    with serving() as served:
        assert only(served.talk(get("/", *wish))).status == 200


# Clients that shut their writing side, and clients that leave.


@pytest.mark.parametrize("request_", [get("/"), post("/", b"x" * 300_000), get("/") * 300])
def test_a_client_that_has_shut_its_writing_side_is_answered(request_: bytes) -> None:
    with serving() as served:
        found = answers(served.talk(request_, half_close=True))
    assert {answer.status for answer in found} == {200}
    assert len(found) == request_.count(b"HTTP/1.1")


def test_such_a_client_is_answered_however_long_it_takes() -> None:
    with serving(head_seconds=0.1, body_seconds=0.1, keep_alive=0.1) as served:
        connection = served.connect()
        connection.sendall(get("/wait"))
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.5)
        assert served.app.left == []
        served.go()
        assert only(rest(connection)).status == 200
        connection.close()


@pytest.mark.parametrize("late", [True, False])
def test_such_a_client_gets_its_stream_whole(late: bool) -> None:
    with serving() as served, served.connect() as connection:
        connection.sendall(get("/stream"))
        if late:
            assert b"first" in connection.recv(MIB)
        connection.shutdown(socket.SHUT_WR)
        # As many looks as there are digits in the longest size.
        time.sleep(1)
        assert served.app.left == []
        served.go()
        answer = HTTPResponse(connection)
        if late:
            assert re.search(rb"^0{1,8}4\r\nlast\r\n0\r\n\r\n$", rest(connection))
        else:
            answer.begin()
            assert answer.read() == b"first last"


def test_such_a_client_gets_a_head_that_was_kept_for_its_body_first() -> None:
    with serving() as served, served.connect() as connection:
        connection.sendall(get("/held"))
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        served.go()
        answer = HTTPResponse(connection)
        answer.begin()
        assert answer.read() == b"body"


@pytest.mark.parametrize("path", ["/wait", "/stream"])
def test_such_a_client_is_missed_when_it_leaves(path: str) -> None:
    with serving() as served:
        connection = served.connect()
        connection.sendall(get(path))
        connection.shutdown(socket.SHUT_WR)
        wait_for(lambda: served.app.seen, "the request")
        time.sleep(0.2)
        connection.close()
        wait_for(lambda: served.app.left == [path], "missed")


def test_a_client_is_missed_behind_a_relay_that_only_shuts_its_writing_side() -> None:
    # As Docker's own does, through which every client of a published port on loopback comes.
    with serving() as served, relay(served.port) as port:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(get("/wait"))
        wait_for(lambda: served.app.seen, "the request")
        connection.close()
        wait_for(lambda: served.app.left == ["/wait"], "missed")


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
@pytest.mark.parametrize("path", ["/wait", "/stream"])
def test_an_application_is_told_that_its_client_left(
    path: str, leave: Callable[[socket.socket], None]
) -> None:
    with serving() as served:
        connection = served.connect()
        connection.sendall(get(path))
        if path == "/stream":
            assert connection.recv(MIB)
        wait_for(lambda: served.app.seen, "the request")
        leave(connection)
        wait_for(lambda: served.app.left == [path], "told")
        wait_for(lambda: not served.connections, "closed")


def test_a_client_of_http_1_0_that_sends_no_more_has_left() -> None:
    with serving() as served, served.connect() as connection:
        connection.sendall(b"GET /wait HTTP/1.0\r\n\r\n")
        wait_for(lambda: served.app.seen, "the request")
        connection.shutdown(socket.SHUT_WR)
        wait_for(lambda: served.app.left == ["/wait"], "told")


def test_a_body_that_ends_with_the_connection_is_no_request() -> None:
    with serving() as served:
        assert served.talk(post("/", b"abc")[:-1], half_close=True) == b""
        wait_for(lambda: served.app.left == ["/"], "told")


# Answers.


def test_trailers_follow_the_last_chunk() -> None:
    with serving() as served:
        data = served.talk(get("/trailers"), get("/", CLOSE))
    assert b"5\r\nhello\r\n0\r\nx-one: 1\r\nx-two: 2\r\n\r\nHTTP/1.1 200 OK\r\n" in data


@pytest.mark.parametrize(
    "request_",
    [
        get("/trailers?length", CLOSE),
        get("/trailers", CLOSE).replace(b"GET", b"HEAD"),
        b"GET /trailers HTTP/1.0\r\n\r\n",
    ],
)
def test_trailers_for_which_there_is_no_place_are_left_out(request_: bytes) -> None:
    with serving() as served:
        data = served.talk(request_)
    assert b"x-one" not in data
    assert data.endswith(b"\r\n\r\n" if request_.startswith(b"HEAD") else b"\r\n\r\nhello")


def test_a_client_of_http_1_0_gets_no_chunks() -> None:
    with serving() as served:
        head, _, body = served.talk(b"GET /chunks HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head
    assert body == b"onetwothree"


def test_a_fault_of_ours_is_told_in_the_envelope(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as served:
        answer = only(served.talk(get("/fail")))
    assert answer.status == 500
    assert answer.error["code"] == "internal_error"
    assert answer.headers["connection"] == "close"
    assert "RuntimeError: /fail" in caplog.text


@pytest.mark.parametrize(
    ("begun", "status"),
    [
        (post("/early", bytes(32 * MIB))[: -32 * MIB], 413),
        (b"\x00", 400),
        (get("/", "X: " + "a" * 70_000), 431),
    ],
)
def test_a_client_that_sends_all_before_it_reads_learns_why_it_was_refused(
    begun: bytes, status: int
) -> None:
    with serving() as served, served.connect() as connection:
        connection.sendall(begun + bytes(32 * MIB))
        assert only(rest(connection)).status == status
        connection.close()
        wait_for(lambda: not served.connections, "closed")


def test_an_answer_that_ends_the_connection_is_not_lost_to_what_was_pipelined() -> None:
    with serving() as served, served.connect() as connection:
        connection.sendall(post("/early", b"") + get("/") * 1_000_000)
        assert only(rest(connection)).status == 413
        assert served.app.seen == ["POST /early"]


def test_a_client_that_does_not_close_after_its_refusal_is_cut_off() -> None:
    with serving(body_seconds=0.2) as served, served.connect() as connection:
        connection.sendall(b"\x00")
        assert only(rest(connection)).status == 400
        wait_for(lambda: not served.connections, "cut off")


def test_a_server_that_stops_waits_for_answers_and_not_for_refused_clients() -> None:
    # The clients close after the server.
    with contextlib.ExitStack() as clients, serving(body_seconds=600) as served:
        stubborn, asking, breaking, idle = (
            clients.enter_context(served.connect()) for _ in range(4)
        )
        stubborn.sendall(chunked("/later") + b"zz\r\n")
        assert only(rest(stubborn)).status == 400
        asking.sendall(get("/wait"))
        breaking.sendall(chunked("/later"))
        wait_for(lambda: len(served.app.seen) == 3, "the requests")
        served.server.should_exit = True
        assert rest(idle) == b""
        # Behind the one that is owed nothing is begun any more.
        asking.sendall(get("/second"))
        breaking.sendall(b"zz\r\n")
        assert only(rest(breaking)).status == 400
        served.go()
        assert only(rest(asking)).status == 200
    assert "GET /second" not in served.app.seen


# What is no HTTP/1.1, or more than one thing.

H = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKS = b"\r\n5\r\nhello\r\n0\r\n\r\n"
TE = b"Transfer-Encoding: "
HOSTILE = {
    "length and chunks": H + b"Content-Length: 5\r\n" + TE + b"chunked\r\n" + CHUNKS,
    "chunks and length": H + TE + b"chunked\r\nContent-Length: 5\r\n" + CHUNKS,
    "two lengths": H + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "the same length twice": H + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": H + b"Content-Length: 5, 5\r\n\r\nhello",
    "a length with a sign": H + b"Content-Length: +5\r\n\r\nhello",
    "a negative length": H + b"Content-Length: -5\r\n\r\nhello",
    "a hexadecimal length": H + b"Content-Length: 0x5\r\n\r\nhello",
    "an empty length": H + b"Content-Length: \r\n\r\nhello",
    "an endless length": H + b"Content-Length: 99999999999999999999\r\n\r\nhello",
    "chunked, identity": H + TE + b"chunked, identity\r\n" + CHUNKS,
    "identity": H + TE + b"identity\r\n" + CHUNKS,
    "identity and chunked": H + TE + b"identity\r\n" + TE + b"chunked\r\n" + CHUNKS,
    "gzip, chunked": H + TE + b"gzip, chunked\r\n" + CHUNKS,
    "chunked twice": H + TE + b"chunked\r\n" + TE + b"chunked\r\n" + CHUNKS,
    "xchunked": H + TE + b"xchunked\r\n" + CHUNKS,
    "chunked behind a tab": H + TE + b"\x0bchunked\r\n" + CHUNKS,
    "chunked with a parameter": H + TE + b"chunked;q=1\r\n" + CHUNKS,
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\n" + TE + b"chunked\r\n" + CHUNKS,
    "chunked on a folded line": H + b"Transfer-Encoding:\r\n chunked\r\n" + CHUNKS,
    "a folded header": H + b"X: a\r\n b\r\n\r\n",
    "a space before the first header": b"GET / HTTP/1.1\r\n X: a\r\n\r\n",
    "lines without CR": b"GET / HTTP/1.1\nHost: x\n\n",
    "one line without CR": b"GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
    "a CR inside a line": b"GET / HTTP/1.1\r\nHost: x\rX: y\r\n\r\n",
    "a space before the colon": H + b"Content-Length : 5\r\n\r\nhello",
    "no colon": H + b"X\r\n\r\n",
    "no name": H + b": x\r\n\r\n",
    "NUL in a value": H + b"X: a\x00b\r\n\r\n",
    "NUL in a name": H + b"X\x00: a\r\n\r\n",
    "a name beyond ASCII": H + b"X\xe9: a\r\n\r\n",
    "a chunk's size with 0x": H + TE + b"chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk's size with a sign": H + TE + b"chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    "a chunk's size and a space": H + TE + b"chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
    "a chunk's size too large": H + TE + b"chunked\r\n\r\n" + b"f" * 17 + b"\r\nhello\r\n",
    "a chunk longer than it says": H + TE + b"chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n",
    "chunks without CR": H + TE + b"chunked\r\n\r\n5\nhello\n0\n\n",
    "an extension without CR": H + TE + b"chunked\r\n\r\n5;a\nhello\r\n0\r\n\r\n",
    "a length among the trailers": H + TE + b"chunked\r\n\r\n0\r\nContent-Length: 9\r\n\r\n",
    "a host for a target": b"GET x:80 HTTP/1.1\r\n\r\n",
    "a tunnel": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + get("/smuggled"),
    "a URL without a path": b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target beyond ASCII": b"GET /\xe9 HTTP/1.1\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9 by name": b"GET / HTTP/0.9\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http": b"GET / http/1.1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "an unknown method": b"FOO / HTTP/1.1\r\n\r\n",
    "a method in small letters": b"get / HTTP/1.1\r\n\r\n",
}


@pytest.fixture(scope="module")
def any_server():
    with serving() as served:
        yield served


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("at_once", [True, False])
def test_what_could_be_read_in_two_ways_is_refused(
    any_server: Served, name: str, at_once: bool, caplog: pytest.LogCaptureFixture
) -> None:
    any_server.refused.clear()
    any_server.app.seen.clear()
    request = HOSTILE[name] + get("/smuggled") * 3
    pieces = [request] if at_once else [request[at : at + 1] for at in range(len(request))]
    with caplog.at_level(logging.INFO), any_server.connect() as connection:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        refused(any_server, rest(connection), 400, "malformed_request")
    assert "GET /smuggled" not in any_server.app.seen
    # A flood of them must not fill a disk.
    assert not caplog.records


# Odd, and still one thing only.
ODD = {
    "a URL for a target": b"GET http://elsewhere/v1/models?x HTTP/1.1\r\nHost: x\r\n\r\n",
    "empty lines before it": b"\r\n\r\n" + get(),
    "a length with zeros": H + b"Content-Length: 005\r\n\r\nhello",
    "an extension": H + TE + b"chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
    "chunked in capitals": H + TE + b"CHUNKED\r\n" + CHUNKS,
    "a value beyond ASCII": get("/", "X: \xe9"),
    "a body of GET": b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    "two hosts": get("/", "Host: y"),
    "all of the server": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_odd_is_one_request_and_the_next_is_the_next(
    any_server: Served, name: str, at_once: bool
) -> None:
    any_server.app.seen.clear()
    request = ODD[name] + get("/next", CLOSE)
    pieces = [request] if at_once else [request[at : at + 1] for at in range(len(request))]
    first, second = answers(any_server.talk(*pieces))
    assert first.status == 200
    assert first.said["body"] in ("", "hello")
    assert second.said["path"] == "/next"
    assert len(any_server.app.seen) == 2


# The same through a whole gateway, which says what arrived.
ECHO = b" /v1/responses "
TARGETS = ("a URL for a target", "all of the server")


async def raw(shared: Gateway, data: bytes) -> bytes:
    address = urlsplit(shared.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(data)
    answered = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answered


async def served_by_engine(shared: Gateway) -> list[str]:
    return [
        line
        for line in (await shared.metrics()).splitlines()
        if 'status="200"' in line and "/v1/responses" in line
    ]


@pytest.mark.parametrize("name", HOSTILE)
async def test_the_engine_answers_nothing_of_what_is_refused(shared: Gateway, name: str) -> None:
    before = await served_by_engine(shared)
    asked = HOSTILE[name].replace(b" / ", ECHO) + post("/v1/responses", b"smuggled")
    assert only(await raw(shared, asked)).status == 400
    assert await served_by_engine(shared) == before


@pytest.mark.parametrize("name", sorted(ODD.keys() - TARGETS))
async def test_the_engine_sees_of_what_is_odd_what_it_means(shared: Gateway, name: str) -> None:
    odd = ODD[name].replace(b"GET / ", b"POST / ").replace(b" / ", ECHO)
    first, second = answers(await raw(shared, odd + post("/v1/responses", b"next", CLOSE)))
    body = b"hello" if b"hello" in odd else b""
    assert first.said["target"] == second.said["target"] == "/v1/responses"
    assert first.said["length"] == len(body)
    assert first.said["sha256"] == hashlib.sha256(body).hexdigest()
    assert second.said["sha256"] == hashlib.sha256(b"next").hexdigest()
