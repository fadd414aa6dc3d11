"""Reads `rounding` records: what storing weights in fewer bits costs, without calibration."""

from scripts.reporting.page import Section, Table, figure
from scripts.reporting.records import Shape, Source, each, taken
from scripts.reporting.svg import Plot, axis

KIND = "rounding"


class Recipe(Shape):
    """One way to store the linears."""

    perplexity: float
    change: float
    bits_per_weight: float
    relative_rms_error: float


def section(source: Source) -> Section:
    """Bits a weight against the change of perplexity."""
    made = Section(
        KIND,
        "Rounding",
        "Perplexity of a model whose linears are stored in fewer bits, rounded to nearest.",
        "No record of kind rounding yet: make bench-blob.",
    )
    good, made.notes = taken(each(Recipe), source.of(KIND))
    made.records = [found for found, _ in good]
    for found, own in good:
        made.figures.append(_figure(found.model, own))
        rows = [
            [
                name,
                f"{one.bits_per_weight:.2f}" if one.bits_per_weight else "as trained",
                f"{one.perplexity:.2f}",
                f"{one.change:+.2%}",
                f"{one.relative_rms_error:.1%}",
            ]
            for name, one in own.items()
        ]
        head = ["recipe", "bits a weight", "perplexity", "change", "error of the weights"]
        made.tables.append(Table(f"Rounding, {found.model}", head, rows))
    return made


def _figure(model: str, own: dict[str, Recipe]) -> str:
    points = {name: one for name, one in own.items() if one.bits_per_weight}
    title = f"Bits a weight against perplexity, {model}"
    plot = Plot(
        title,
        "; ".join(
            f"{name}: {o.bits_per_weight:.2f}, {o.change:+.2%}" for name, o in points.items()
        ),
        axis("bits a weight", [one.bits_per_weight for one in points.values()]),
        axis(
            "change of perplexity",
            [one.change for one in points.values()],
            zero=True,
            tick="{:+.1%}".format,
        ),
    )
    for series, (name, one) in enumerate(points.items()):
        plot.point(one.bits_per_weight, one.change, series, name)
    return figure(title, plot.text())
