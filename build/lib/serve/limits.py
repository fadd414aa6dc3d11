"""What one client may ask of a connection, and what it is told when it asks for more."""

from dataclasses import dataclass

from serve.errors import Refusal


@dataclass(frozen=True)
class WireLimits:
    """What one client may ask of the gateway before it has asked anything."""

    # Request line and headers of one request, together.
    header_bytes: int = 64 * 1024
    headers: int = 100
    # From a connection's opening, or a later request's first byte, until the head is whole.
    head_seconds: float = 10
    # The longest pause in a body; all the time that a body gets which nobody reads any more.
    body_seconds: float = 30
    # The longest time in which a reader takes nothing of what waits for it.
    write_seconds: float = 30
    connections: int = 4096
    # Bytes of answers that may wait for a slow reader before the application waits.
    write_buffer: int = 1024 * 1024
    # How often the times above are looked at: they are kept to within this.
    look_seconds: float = 1


HEAD_TOO_LARGE = Refusal(
    431, "headers_too_large", "the request line and headers are larger than this gateway takes"
)
TOO_MANY_HEADERS = Refusal(431, "headers_too_large", "the request has too many headers")
HEAD_TOO_SLOW = Refusal(408, "request_too_slow", "the request's headers took too long to come")
BODY_TOO_SLOW = Refusal(408, "request_too_slow", "the request's body stopped coming")
TOO_MANY_CONNECTIONS = Refusal(
    503,
    "too_many_connections",
    "the gateway has as many connections as it takes",
    headers={"retry-after": "2"},
)
NO_DATA = "more came between a body's chunks than a request's headers may have"


def malformed(why: object) -> Refusal:
    """Not a request, or one that two readers could read in two ways."""
    return Refusal(400, "malformed_request", f"this is not HTTP/1.1 as it should be: {why}")
