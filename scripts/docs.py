"""Makes the documentation that can be read off the code, or checks that it is up to date.

python -m scripts.docs            write docs/reference.md, the tables in the READMEs, the dashboard
python -m scripts.docs --check    write nothing; exit 1 if any would change
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from scripts import dashboard
from serve.config import Config, settable
from serve.model import ModelSource, known_models
from serve.routes import FORWARDED
from serve.settings import REPOSITORY, reference, type_name
from serve.target import Target, known_targets, load_target
from serve.telemetry import Metrics
from serve.variant import Variant, known_variants, load_variant

EXPERIMENTS = REPOSITORY / "experiments"
REFERENCE = REPOSITORY / "docs" / "reference.md"
README = REPOSITORY / "README.md"
DEPLOY = REPOSITORY / "deploy" / "README.md"
DASHBOARD = REPOSITORY / "deploy" / "grafana" / "dashboards" / "preheat.json"
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all is up to date or written, 1 when ``--check`` finds a difference."""
    top = argparse.ArgumentParser(prog="python -m scripts.docs", description=__doc__.split("\n")[0])
    top.add_argument("--check", action="store_true", help="write nothing")
    check = top.parse_args(arguments).check
    wanted = {REFERENCE: reference_page(), DASHBOARD: dashboard.text()}
    wanted |= {page: filled(page.read_text(encoding="utf-8")) for page in (README, DEPLOY)}
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
        "The gateway's own: `GET /health`, `GET /ready`, `GET /variant`, `GET /metrics`. "
        "Forwarded to the engine; no other path exists:",
        table(("path", "methods"), [(f"`{r.path}`", ", ".join(r.methods)) for r in FORWARDED]),
        "## Metrics of the gateway",
        "`/metrics` holds these, then the engine's own (`vllm:*`).",
        table(
            ("metric", "type", "meaning"),
            [(f"`{m.name}`", m.type, m.documentation) for m in Metrics().registry.collect()],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def filled(text: str) -> str:
    """``text`` with every generated block made anew.

    :raises KeyError: a block of a name that is not known.
    """
    blocks = {
        "variants": variants_table,
        "targets": targets_table,
        "models": models_line,
        "panels": panels_table,
    }
    return BLOCK.sub(lambda found: f"{found[1]}{blocks[found[2]]()}\n{found[3]}", text)


def variants_table() -> str:
    """Name and summary of every variant."""
    rows = []
    for name in known_variants(EXPERIMENTS):
        variant = load_variant(name, EXPERIMENTS)
        rows.append((f"[`{name}`](experiments/{name}/README.md)", variant.summary))
    return table(("variant", "what it is"), rows)


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
