"""The frontier: how much faster a variant is against how far its predictions moved."""

from dataclasses import dataclass

from scripts.reporting import latency, quality
from scripts.reporting.extent import BASELINE, less, reference, worth
from scripts.reporting.latency import Latency, Ratio
from scripts.reporting.page import Section, Table, figure
from scripts.reporting.quality import FIGURES, Interval, Quality
from scripts.reporting.records import Found, Source, Unknown, summary, taken
from scripts.reporting.svg import Plot, axis

SHOWN = ("kl", "perplexity_change")
# Times the limit; what lies further away leaves no room between the others, which are shown again.
NEAR = 5.0


@dataclass(frozen=True)
class Place:
    """A variant on the frontier; a figure that no record has is none."""

    variant: str
    where: str
    load: str
    speed: Ratio | None
    spans: dict[str, Interval | None]
    limits: dict[str, float | None]
    verdict: str
    lacks: str

    @property
    def name(self) -> str:
        """The variant, with a star where a record of it is not whole."""
        return f"{self.variant}*" if self.lacks else self.variant


Drawn = tuple[Place, Ratio, Interval]


def section(source: Source) -> Section:
    """A picture for each model and target and each measure of quality, and one table."""
    made = Section(
        "frontier",
        "Latency and quality",
        "Right is faster, down is nearer to the BF16 model. The shaded band is what the parity "
        "rule allows; the whole vertical bar must lie in it. Bars are 95 % intervals. All of it is "
        "against the baseline; a star marks records that are not whole, which the table explains.",
        "It takes records of both kinds, latency and quality, of a variant: make eval-latency, "
        "make eval-quality.",
    )
    fast, notes = taken(summary(Latency), against_baseline(source, latency.KIND))
    near, more = taken(summary(Quality), against_baseline(source, quality.KIND))
    made.notes = notes + more
    try:
        places = list(_places(fast, near))
    except (Unknown, KeyError) as error:
        made.notes.append(f"not drawn: {error}")
        return made
    whole = [one for one in places if one.speed and any(one.spans.values())]
    if not whole:
        return made
    made.records = [found for found, _ in fast] + [found for found, _ in near]
    for where in dict.fromkeys(one.where for one in whole):
        own = [one for one in whole if one.where == where]
        made.figures += [f for name in SHOWN for f in _figure(where, name, own)]
    made.tables.append(_table(places))
    return made


def against_baseline(source: Source, kind: str) -> list[Found]:
    """The records of ``kind`` whose figures are against the baseline of the same model."""
    return [one for one in source.of(kind, reference, worth) if reference(one) == BASELINE]


def _places(fast: list[tuple[Found, Latency]], near: list[tuple[Found, Quality]]) -> list[Place]:
    found = []
    speeds = {(f.variant, f.place): (f, one) for f, one in fast if one.candidate != one.reference}
    judged = {(f.variant, f.place): (f, one) for f, one in near}
    for key in dict.fromkeys((*speeds, *judged)):
        record, one = speeds.get(key, (None, None))
        cell = latency.main_cell(one) if one else ""
        at, told = judged.get(key, (None, None))
        spans = {n: quality.interval(told, n, at.name) if told and at else None for n in SHOWN}
        found.append(
            Place(
                variant=key[0],
                where=key[1],
                load=latency.told(cell) if cell else "",
                speed=latency.ratio(record, one, cell) if record and one else None,
                spans=spans,
                limits={n: quality.limit(told, n) if told else None for n in SHOWN},
                verdict=told.verdict if told else "no record of quality",
                lacks="; ".join(filter(None, (less(one) for one in (record, at) if one))),
            )
        )
    return found


def _figure(where: str, name: str, places: list[Place]) -> list[str]:
    own = [(p, p.speed, s) for p in places if p.speed and (s := p.spans[name])]
    if not own:
        return []
    limit = next((p.limits[name] for p in places if p.limits[name] is not None), None)
    title = f"Speed against {FIGURES[name][0]}, {where}"
    drawn = [_picture(title, name, own, limit)]
    near = [one for one in own if limit is not None and one[2].high <= NEAR * limit]
    if 0 < len(near) < len(own):
        drawn.append(_picture(f"{title}: those near the limit", name, near, limit))
    return drawn


def _picture(title: str, name: str, own: list[Drawn], limit: float | None) -> str:
    words, scale, unit = FIGURES[name]
    loads = {place.load for place, _, _ in own}
    ys = [v * scale for _, _, s in own for v in (s.low, s.high)] + [0.0]
    ys += [limit * scale] if limit is not None else []
    plot = Plot(
        title,
        "; ".join(
            f"{p.name}: {r.ratio:.2f} times, {s.point * scale:.4g} {unit}" for p, r, s in own
        ),
        axis(f"times faster, end to end, {_common(loads)}", [1.0, *_ends(own)]),
        axis(f"{words}, {unit}", ys),
    )
    if limit is not None:
        plot.region(plot.y.low, limit * scale, f"allowed: up to {limit * scale:g} {unit}")
    plot.upright(1.0, "the reference")
    for series, (place, speed, span) in enumerate(own):
        plot.point(
            speed.ratio,
            span.point * scale,
            series,
            place.name if len(loads) == 1 else f"{place.name}, {place.load}",
            ((speed.low, speed.high), (span.low * scale, span.high * scale)),
        )
    return figure(plot.title, plot.text())


def _common(loads: set[str]) -> str:
    return next(iter(loads)) if len(loads) == 1 else "each at the load beside it"


def _ends(own: list[Drawn]) -> list[float]:
    return [end for _, speed, _ in own for end in (speed.low, speed.high)]


def _table(places: list[Place]) -> Table:
    rows = []
    for one in places:
        speed = one.speed
        shown = f"{speed.ratio:.2f} ({speed.low:.2f} to {speed.high:.2f})" if speed else "no record"
        cells = [_span(one.spans[n], FIGURES[n][1]) for n in SHOWN]
        rows.append([f"{one.name}, {one.where}", one.load, shown, *cells, one.verdict, one.lacks])
    units = [f"{FIGURES[n][0]}, {FIGURES[n][2]}" for n in SHOWN]
    head = ["variant, model, target", "load", "times faster", *units, "by the rule", "not whole"]
    return Table("The same as numbers", head, rows)


def _span(span: Interval | None, scale: float) -> str:
    if span is None:
        return "no record"
    return f"{span.point * scale:.4g} ({span.low * scale:.4g} to {span.high * scale:.4g})"
