"""Reads `vocab_coverage` records: what a pruned vocabulary keeps of texts that were not counted."""

from scripts.reporting.page import Section, Table, figure
from scripts.reporting.records import Shape, Source, summary, taken
from scripts.reporting.rows import dots
from scripts.reporting.svg import axis, legend

KIND = "vocab_coverage"
Shares = dict[str, dict[str, float]]


class Vocab(Shape):
    """The summary of a record: by origin of the texts, then by kind (a language, code)."""

    tokens: int
    size: int
    coverage: Shares
    growth: Shares


def section(source: Source) -> Section:
    """For each model and size: tokens that stay, and how much longer texts become."""
    made = Section(
        "vocab",
        "Vocabulary",
        "Of held-out texts, by kind: the share of tokens that a pruned vocabulary still has, and "
        "how many tokens the texts become for each one before.",
        "No record of kind vocab_coverage yet: python -m scripts.measure_vocab coverage tiny.",
    )
    kind = source.of(KIND, lambda found: str(found.record.summary.get("size")))
    good, made.notes = taken(summary(Vocab), kind)
    for found, vocab in good:
        made.records.append(found)
        name = f"{found.model}, {vocab.size:,} of {vocab.tokens:,} tokens"
        made.figures += [
            _figure(f"Coverage, {name}", "tokens that stay", vocab.coverage, 100.0, "%"),
            _figure(f"Length, {name}", "tokens after for each before", vocab.growth, 1.0, "×"),
        ]
        made.tables.append(_table(name, vocab))
    return made


def _kinds(shares: Shares) -> list[str]:
    return list(dict.fromkeys(kind for told in shares.values() for kind in told))


def _figure(title: str, label: str, shares: Shares, scale: float, unit: str) -> str:
    values = [value * scale for told in shares.values() for value in told.values()]
    rows = [
        (kind, [told[kind] * scale if kind in told else None for told in shares.values()])
        for kind in _kinds(shares)
    ]
    words = "; ".join(
        f"{origin}: " + ", ".join(f"{kind} {value * scale:.4g}" for kind, value in told.items())
        for origin, told in shares.items()
    )
    picture = dots(title, words, rows, axis(f"{label}, {unit}", [*values, scale]))
    return figure(title, picture, legend(list(shares)))


def _table(name: str, vocab: Vocab) -> Table:
    rows = [
        [
            f"{origin}: {kind}",
            f"{share:.2%}",
            f"{vocab.growth[origin][kind]:.3f}" if kind in vocab.growth.get(origin, {}) else "",
        ]
        for origin, told in vocab.coverage.items()
        for kind, share in told.items()
    ]
    return Table(f"Vocabulary, {name}", ["texts", "tokens that stay", "tokens after a token"], rows)
