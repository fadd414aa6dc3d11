"""Makes the documentation that can be read off the code, or checks that it is up to date.

python -m scripts.docs            write docs/reference.md, the tables in the READMEs, the dashboard,
                                  and what the chart for Kubernetes has of the code
python -m scripts.docs --check    write nothing; exit 1 if any would change
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric

from scripts import capacity, chart, dashboard
from scripts.fleet.size import Growth, Promise
from scripts.reporting import extent, latency, parity, quality
from scripts.reporting.records import Found, Source, read, shaped
from serve.config import Config, settable
from serve.model import ModelSource, known_models
from serve.routes import ADMIN, FORWARDED, OWN, Route
from serve.settings import REPOSITORY, reference, type_name
from serve.target import Target, known_targets, load_target
from serve.telemetry import Metrics
from serve.variant import Variant, known_variants, load_variant

EXPERIMENTS = REPOSITORY / "experiments"
REFERENCE = REPOSITORY / "docs" / "reference.md"
README = REPOSITORY / "README.md"
DEPLOY = REPOSITORY / "deploy" / "README.md"
FLEET = REPOSITORY / "docs" / "fleet.md"
DASHBOARD = REPOSITORY / "deploy" / "grafana" / "dashboards" / "preheat.json"
# What the table of fleets is made from.
LATENCY = Path("seq8-best/measurements/latency_2026-11-21T213452Z.json")
GATEWAY = Path("measurements/gateway_2026-11-22T171824Z.json")
# Where the table of variants is measured: what a clone can measure again without a GPU.
RIG = ("tiny", "cpu")
# As the Makefile's own `help` reads itself.
TARGET = re.compile(r"^([a-z-]+):.*?## (.*)$", re.MULTILINE)
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all is up to date or written, 1 when ``--check`` finds a difference."""
    top = argparse.ArgumentParser(prog="python -m scripts.docs", description=__doc__.split("\n")[0])
    top.add_argument("--check", action="store_true", help="write nothing")
    check = top.parse_args(arguments).check
    wanted = {REFERENCE: reference_page(), DASHBOARD: dashboard.text()}
    # The rendering is of what lies on the disk: with another list of siblings it is made anew.
    wanted |= {chart.SIBLINGS: chart.siblings(), chart.PLAIN: chart.plain()}
    wanted |= {page: filled(page.read_text(encoding="utf-8")) for page in (README, DEPLOY, FLEET)}
    stale = [path for path, text in wanted.items() if _current(path) != text]
    for path in stale:
        name = path.relative_to(REPOSITORY)
        if check:
            print(f"{name}: not up to date; run `make fix`", file=sys.stderr)
        else:
            path.write_text(wanted[path], encoding="utf-8")
            print(f"wrote {name}")
    return 1 if check and stale else 0


def reference_page() -> str:
    """The whole of ``docs/reference.md``."""
    parts = [
        "# Reference",
        "Made by `make fix` from the code; do not edit.",
        "## Environment of the gateway",
        "Options of `preheat serve run` override it. `preheat serve env` prints the same.",
        table(
            ("variable", "type", "default", "meaning"),
            [(f"`{e.name}`", e.type, _code(e.default), e.sentence) for e in reference()],
        ),
        "## Levers of a variant: `experiments/<variant>/config.env`",
        keys(Variant),
        "## Facts of a target: `experiments/targets/<target>.env`",
        keys(Target),
        "## Models: `experiments/models/<model>.env`",
        keys(ModelSource),
        "## Paths",
        "The gateway's own. Where keys are on, all but the first two ask for one, and the last for "
        "one that may administer:",
        paths((*OWN, *ADMIN)),
        "Forwarded to the engine; no other path exists:",
        paths(FORWARDED),
        "## Metrics of the gateway",
        "`/metrics` holds these, then the engine's own (`vllm:*`).",
        table(
            ("metric", "type", "meaning"),
            [(f"`{exposed(m)}`", m.type, m.documentation) for m in Metrics().registry.collect()],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def exposed(metric: Metric) -> str:
    """Its name as it stands in the text that Prometheus reads."""
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def paths(routes: Iterable[Route]) -> str:
    """Paths and what can be done with each."""
    return table(("path", "methods"), [(f"`{r.path}`", ", ".join(r.methods)) for r in routes])


def filled(text: str) -> str:
    """``text`` with every generated block made anew.

    :raises KeyError: a block of a name that is not known.
    """
    blocks = {
        "variants": variants_table,
        "targets": targets_table,
        "models": models_line,
        "panels": panels_table,
        "help": make_help,
        "capacity": capacity_table,
    }
    return BLOCK.sub(lambda found: f"{found[1]}{blocks[found[2]]()}\n{found[3]}", text)


def capacity_table() -> str:
    """Fleets for the loads of the command's own table, from the records that the page names."""
    curve = capacity.curve_of(capacity.load(EXPERIMENTS / LATENCY))
    gateway = capacity.gateway_of(EXPERIMENTS / GATEWAY)
    wanted = capacity.Wanted(Promise(), Growth(), gateway)
    rows = capacity.fleets(curve, wanted, capacity.RATES)
    head = [name.replace("_", " ") for name in rows[0]]
    return table(head, [[f"{value:g}" for value in row.values()] for row in rows])


def make_help() -> str:
    """What `make help` prints."""
    targets = TARGET.findall((REPOSITORY / "Makefile").read_text(encoding="utf-8"))
    lines = [f"  {name:16} {said}" for name, said in targets]
    return "\n".join(["```console", "$ make help", *lines, "```"])


def variants_table() -> str:
    """Every variant, and what the fullest records of the tiny model on a CPU say of it."""
    source = read(REPOSITORY)
    variants = [load_variant(name, EXPERIMENTS) for name in known_variants(EXPERIMENTS)]
    today = of_today(source, {variant.name: variant.levers for variant in variants})
    speeds = {f.variant: f for f in _measured(today, latency.KIND)}
    qualities = {f.variant: f for f in _measured(today, quality.KIND)}
    drafts = {f.variant: f for f in source.of(parity.KIND) if (f.model, f.target) == RIG}
    rows = []
    for variant in variants:
        name = variant.name
        link = f"[`{name}`](experiments/{name}/README.md)"
        speed = _speed(speeds.get(name))
        verdict = _verdict(qualities.get(name), drafts.get(name))
        rows.append((link, variant.summary, *speed, verdict))
    head = ("variant", "what it is", "1 at once", "8 at once", "quality")
    return table(head, rows)


def of_today(source: Source, levers: Mapping[str, Mapping[str, Any]]) -> Source:
    """The records of variants as they stand: what was measured with other levers says nothing of
    those that a reader gets.
    """
    same = [f for f in source.records if f.record.variant.get("levers") == levers.get(f.variant)]
    return Source(same, source.unread)


def _measured(source: Source, kind: str) -> list[Found]:
    """Of each variant the fullest record against the baseline, on the rig that everybody has."""
    found = source.of(kind, extent.reference, extent.worth)
    rig = (*RIG, extent.BASELINE)
    return [one for one in found if (one.model, one.target, extent.reference(one)) == rig]


def _speed(found: Found | None) -> tuple[str, str]:
    """Times faster end to end, with the interval, at one and at eight requests at once."""
    if found is None:
        return "", ""
    told = shaped(latency.Latency, found)
    one, eight = (latency.ratio(found, told, cell) for cell in ("c1", "c8"))
    shown = [f"{r.ratio:.2f}× ({r.low:.2f} to {r.high:.2f})" if r else "" for r in (one, eight)]
    return f"[{shown[0]}]({found.name})" if shown[0] else "", shown[1]


def _verdict(found: Found | None, drafts: Found | None) -> str:
    """The rule's, and on what it rests; beside one of texts, in which drafts have no part, how many
    greedy texts they left as they were.
    """
    same = ""
    if drafts:
        equal, all_ = shaped(parity.Parity, drafts).same
        same = f"[same greedy text, {equal} of {all_}]({drafts.name})"
    if found is None:
        return same
    judged = shaped(quality.Quality, found)
    said = f"[{judged.told}]({found.name})"
    beside = same and judged.judged_on == quality.TEXTS_ALONE
    return f"{said}; {same}" if beside else said


def targets_table() -> str:
    """What every target drops, and why."""
    rows = []
    for name in known_targets(EXPERIMENTS):
        target = load_target(name, EXPERIMENTS)
        reasons = [
            f"{field.removeprefix('no_').replace('_', ' ')}: {reason}"
            for field in Target.model_fields
            if field.startswith("no_") and (reason := getattr(target, field))
        ]
        rows.append((f"`{name}`", _default_models(target), "; ".join(reasons) or "nothing"))
    return table(("target", "default model", "drops"), rows)


def _default_models(target: Target) -> str:
    drafts = target.default_model_with_mtp
    return f"`{target.default_model}`" + (f", with MTP `{drafts}`" if drafts else "")


def models_line() -> str:
    """Names of the models."""
    return ", ".join(f"`{name}`" for name in known_models(EXPERIMENTS))


def panels_table() -> str:
    """What every panel of the dashboard says."""
    return table(("panel", "says"), [(panel.title, panel.says) for panel in dashboard.panels()])


def keys(cls: type[Config]) -> str:
    """The keys that a file may hold for ``cls``; the name comes from the file's own."""
    rows = []
    for key in settable(cls, {"name": None}):
        field = next(f for n, f in cls.model_fields.items() if (f.alias or n) == key)
        default = "required" if field.is_required() else _code(_shown(field.default))
        rows.append((f"`{key}`", type_name(field.annotation), default, field.description or ""))
    return table(("key", "type", "default", "meaning"), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return "" if default is None or default == () else str(default)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _current(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())
