"""The loads of one round: at a rate, as an appliance meets them, and as fast as it goes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.gateway.upstream import Pace

# Of the open loop: a stream's first token after 20 ms, the others 2 ms apart; a whole one at 30 ms.
PACED_STREAM = Pace(0.02, 0.002, 24)
PACED_WHOLE = Pace(0.03, 0.0, 24)
# Of the closed loop, which asks what the system takes and not the engine.
UNPACED = Pace(0.0, 0.0, 24)
RHYTHM = Pace(0.002, 0.002, 24)
STREAMING_CLIENTS = 8


@dataclass(frozen=True)
class Cell:
    """One load: ``rate`` requests a second (open loop), or ``clients`` at once (closed loop)."""

    pace: Pace
    seconds: float
    stream: bool
    rate: float = 0
    clients: int = 0

    @property
    def name(self) -> str:
        """Of tables and records."""
        load = f"open {self.rate:g}/s" if self.rate else f"closed {self.clients}"
        return f"{load} {'streams' if self.stream else 'whole'}"

    @property
    def load(self) -> dict[str, object]:
        """For programs."""
        asked = {"pace": self.pace.words, "seconds": self.seconds, "stream": self.stream}
        return {**asked, "rate": self.rate, "clients": self.clients}

    def words(self) -> Iterator[str]:
        """Arguments of the load client."""
        yield from ("--pace", self.pace.words, "--seconds", str(self.seconds))
        if self.stream:
            yield "--stream"
        if self.rate:
            yield from ("--rate", str(self.rate))
        else:
            yield from ("--concurrency", str(self.clients))


def cells(
    rates: Sequence[float], clients: Sequence[int], open_s: float, closed_s: float
) -> list[Cell]:
    """Whole answers and streams at each rate; whole ones with so many clients; streams with 8."""
    paced = [
        Cell(pace, open_s, stream, rate=rate)
        for rate in rates
        for pace, stream in ((PACED_WHOLE, False), (PACED_STREAM, True))
    ]
    whole = [Cell(UNPACED, closed_s, stream=False, clients=count) for count in clients]
    streams = [Cell(RHYTHM, closed_s, stream=True, clients=STREAMING_CLIENTS)] if clients else []
    return [*paced, *whole, *streams]
