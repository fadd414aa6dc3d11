"""How much of a measurement a record is: against whom, how full, and what sets it apart.

Knows what the commands ask of `latency` and `quality`, not what came of it. A record with less
gives way to one with more, however new it is, and says what it lacks.
"""

from scripts.reporting.records import Found

MODES = ("smoke", "fast", "10%", "full")
BASELINE = "baseline"
# Options that make another measurement of it, and their words.
OTHERWISE = {
    "busy_ok": "beside others' work",
    "as_served": "sampling as served",
    "shared_prefix": "prefixes shared",
}


def reference(found: Found) -> str:
    """The variant that it was measured against; of another model with that model's name."""
    told = found.record.parameters.get("reference", found.record.summary.get("reference", ""))
    if not isinstance(told, dict):
        return str(told)
    model = told.get("model")
    name = str(model.get("name", "")) if isinstance(model, dict) else ""
    other = f" of {name}" if name and name != found.model else ""
    return f"{told.get('variant', '')}{other}"


def less(found: Found) -> str:
    """What was left out of it, in words; empty for a whole one."""
    asked = found.record.parameters
    said = [words for option, words in OTHERWISE.items() if asked.get(option)]
    if asked.get("requests"):
        said.append(f"{asked['requests']} requests a sample")
    if asked.get("rounds") == 1:
        said.append("1 round")
    if asked.get("mode") not in (None, MODES[-1]):
        said.append(f"mode {asked['mode']}")
    return ", ".join(said)


def worth(found: Found) -> tuple[int, ...]:
    """Greater for a fuller one: as commonly asked, then by mode, then by how much was asked."""
    asked = found.record.parameters
    mode = MODES.index(asked["mode"]) if asked.get("mode") in MODES else -1
    usual = -sum(bool(asked.get(option)) for option in OTHERWISE)
    whole = -int(bool(asked.get("requests")))
    return usual, mode, whole, int(asked.get("rounds") or 0), len(asked.get("tasks") or ())
