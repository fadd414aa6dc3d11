"""Reads `quantize` records: bytes of a model against its perplexity, recipe by recipe."""

from scripts.reporting.page import Section, Table, figure
from scripts.reporting.records import Shape, Source, each, taken
from scripts.reporting.svg import Plot, axis, legend

KIND = "quantize"


class Beside(Shape):
    """Perplexity against another recipe's: AWQ's to rounding's, another tool's to ours."""

    recipe: str
    point: float
    low: float
    high: float


class Recipe(Shape):
    """A model made by one recipe; older records have no interval of the change."""

    perplexity: float
    change: float
    change_low: float | None = None
    change_high: float | None = None
    bytes: int
    seconds: float
    peak_mb: float
    beside: Beside | None = None

    @property
    def span(self) -> tuple[float, float] | None:
        """The 95 % interval of the change."""
        if self.change_low is None or self.change_high is None:
            return None
        return self.change_low, self.change_high


def section(source: Source) -> Section:
    """Bytes against the change of perplexity; recipes that none beats in both are named."""
    made = Section(
        KIND,
        "Quantization",
        "Weights made by each recipe, read back as they would be served: left is smaller, down is "
        "nearer to the weights as they were. Named are those that no other beats in both. Bars are "
        "95 % intervals over texts.",
        "No record of kind quantize yet: python -m scripts.measure_quantize --grid.",
    )
    good, made.notes = taken(each(Recipe), source.of(KIND))
    made.records = [found for found, _ in good]
    for found, own in good:
        made.figures.append(_figure(found.model, own))
        made.tables.append(_table(found.model, own))
    return made


def unbeaten(own: dict[str, Recipe]) -> set[str]:
    """Names of recipes that no other one beats both in bytes and in perplexity."""
    return {
        name
        for name, one in own.items()
        if not any(
            other.bytes <= one.bytes and other.change <= one.change and other != one
            for other in own.values()
        )
    }


def scheme(name: str) -> str:
    """Which colour a recipe has: its scheme, and who made it."""
    return f"{name.split(maxsplit=1)[0]}{' by llm-compressor' if 'llm-compressor' in name else ''}"


def _figure(model: str, own: dict[str, Recipe]) -> str:
    title = f"Bytes against perplexity, {model}"
    named = unbeaten(own)
    ends = [end for one in own.values() for end in (one.change, *(one.span or ()))]
    plot = Plot(
        title,
        "; ".join(
            f"{name}: {own[name].bytes / 1e6:.2f} MB, {own[name].change:+.2%}"
            for name in own
            if name in named
        ),
        axis("MB of weights", [one.bytes / 1e6 for one in own.values()]),
        axis("change of perplexity", ends, tick="{:+.1%}".format),
    )
    schemes = list(dict.fromkeys(map(scheme, own)))
    for name, one in own.items():
        series = schemes.index(scheme(name))
        label = name if name in named else ""
        plot.point(one.bytes / 1e6, one.change, series, label, (None, one.span))
    return figure(title, plot.text(), legend(schemes))


def _table(model: str, own: dict[str, Recipe]) -> Table:
    rows = [
        [
            name,
            f"{one.bytes / 1e6:.2f}",
            f"{one.perplexity:.3f}",
            _percent(one.change, one.span),
            _beside(one.beside),
            f"{one.seconds:.1f}",
            f"{one.peak_mb:,.0f}",
        ]
        for name, one in own.items()
    ]
    head = ["recipe", "MB", "perplexity", "change", "beside", "seconds to make", "peak memory, MB"]
    return Table(f"Quantization, {model}", head, rows)


def _percent(point: float, span: tuple[float, float] | None) -> str:
    return f"{point:+.2%}" + (f" ({span[0]:+.2%} to {span[1]:+.2%})" if span else "")


def _beside(one: Beside | None) -> str:
    return f"{_percent(one.point, (one.low, one.high))} to {one.recipe}" if one else ""
