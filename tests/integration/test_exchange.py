"""What the conformance suite compares: that it sees a difference, and nothing but differences."""

import socket
import threading

import pytest

from tests.integration.exchange import Answer, exchange, posted, request, settled, still

HEAD = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def answering(*said: bytes):
    """Connects to somebody who says this, one piece after each that was heard, and hangs up."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)

    def answer() -> None:
        with theirs:
            for piece in said:
                theirs.recv(65536)
                theirs.sendall(piece)

    threading.Thread(target=answer, daemon=True).start()
    return lambda: ours


def test_chunks_are_told_apart_however_they_arrive():
    connect = answering(CHUNKED + b"9\r\ndata: 1\n\n\r\nb\r\n\ndata: 2\n\n\n\r\n0\r\n\r\n")
    answer = exchange(connect, request("GET", "/"))
    assert answer.chunks == [b"data: 1\n\n", b"\ndata: 2\n\n\n"]


def test_events_are_cut_where_they_end():
    answer = Answer(chunks=[b"data: 1\n\nda", b"ta: 2\n\n"])
    assert answer.events == [b"data: 1\n\n", b"data: 2\n\n"]


def test_a_body_waits_until_it_may_come():
    last = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    connect = answering(b"HTTP/1.1 100 Continue\r\n\r\n", last)
    answer = exchange(connect, posted("/", {}, ("Expect: 100-continue",)))
    assert (answer.interim, answer.status, answer.body) == ([100], 200, b"ok")


@pytest.mark.parametrize(
    "said", [HEAD + b"Content-Length: 9\r\n\r\ndata", CHUNKED + b"4\r\ndata\r\n"]
)
def test_an_answer_that_is_cut_short_is_no_answer(said):
    with pytest.raises(AssertionError):
        exchange(answering(said), request("GET", "/"))


def test_an_answer_without_a_length_ends_with_its_connection():
    assert exchange(answering(HEAD + b"\r\ndata"), request("GET", "/")).body == b"data"


def test_ids_and_times_change_and_still_belong_together():
    one = b'{"id":"cmpl-0123456789abcdef","created":17,"of":"cmpl-0123456789abcdef"}'
    same = b'{"id":"cmpl-%s","created":18,"of":"cmpl-%s"}' % (b"f" * 32, b"f" * 32)
    other = b'{"id":"cmpl-%s","created":18,"of":"cmpl-%s"}' % (b"f" * 32, b"e" * 32)
    assert still(one) == still(same)
    assert still(one) != still(other)


@pytest.mark.parametrize(
    "other",
    [
        Answer(201, [("a", "1"), ("b", "2")], [b"{}"]),
        Answer(200, [("a", "1")], [b"{}"]),
        Answer(200, [("b", "2"), ("a", "1")], [b"{}"]),
        Answer(200, [("a", "1"), ("b", "2")], [b"{ }"]),
        Answer(200, [("a", "1"), ("b", "2")], [b"{}"], chunked=True),
        Answer(200, [("a", "1"), ("b", "2")], [b"{}"], interim=[100]),
    ],
    ids=["status", "missing header", "order of headers", "space", "framing", "interim answer"],
)
def test_any_other_difference_is_seen(other):
    assert settled(other) != settled(Answer(200, [("a", "1"), ("b", "2")], [b"{}"]))


def test_what_belongs_to_the_connection_is_not_compared():
    ours = [("date", "today"), ("x-request-id", "1"), ("a", "1")]
    assert settled(Answer(200, ours)) == settled(Answer(200, [("server", "x"), ("a", "1")]))
