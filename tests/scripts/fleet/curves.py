"""Replicas that can be reckoned by hand."""

from scripts.fleet.curve import Curve, Shape, State

# Nearly all of a request's time is its tokens', which are drawn exponentially many: so textbooks
# have it.
FIRST, OUTPUT = 0.02, 10


def flat(seconds: float = 0.5, places: int = 4) -> Curve:
    """A replica that serves so many at once, each as fast as one alone: M/M/c."""
    states = tuple(state(n, seconds) for n in range(1, places + 1))
    return Curve("flat", states, Shape(100, OUTPUT))


def shared(seconds: float = 0.5, places: int = 400) -> Curve:
    """A replica whose time is shared by all in flight, as a processor's: M/M/1."""
    states = tuple(state(n, n * seconds) for n in range(1, places + 1))
    return Curve("shared", states, Shape(100, OUTPUT))


def state(at_once: int, seconds: float) -> State:
    first = FIRST * seconds
    return State(at_once, first, (seconds - first) / (OUTPUT - 1), (first,))
