"""The Grafana dashboard: which panels there are, what each says, and the JSON that Grafana loads.

Pure: ``scripts.docs`` writes what is made here, and checks that it is up to date. Knows neither
where Prometheus is nor how it is scraped; ``deploy/`` has that.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

UID = "preheat"
# Named by deploy/grafana/provisioning/datasources.
SOURCE = {"type": "prometheus", "uid": "prometheus"}
# What clients ask for, without what machines poll.
API = 'route=~"/v1/.*"'
COLUMNS = 24

Kind = Literal["timeseries", "stat", "bargauge", "state-timeline"]


@dataclass(frozen=True)
class Query:
    """One PromQL expression, and what its series are called: a name, or ``{{label}}``."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel. ``says`` is its tooltip, and its line in ``deploy/README.md``."""

    title: str
    says: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    # Of Grafana's field options: bounds, thresholds, what is shown when there is nothing.
    defaults: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    colours: dict[str, str] = field(default_factory=dict)


def rate(metric: str, by: str = "", where: str = "") -> str:
    """A counter's growth per second, summed over all but ``by``."""
    series = f"{metric}{{{where}}}" if where else metric
    return f"sum{f' by ({by})' if by else ''} (rate({series}[$__rate_interval]))"


def quantiles(histogram: str, where: str = "") -> list[Query]:
    """Median, p95 and p99 of a histogram."""
    buckets = rate(f"{histogram}_bucket", "le", where)
    return [Query(f"histogram_quantile({p / 100:g}, {buckets})", f"p{p}") for p in (50, 95, 99)]


def mean(histogram: str, where: str = "") -> str:
    """The mean of what a histogram saw: exact, where a quantile is a guess within a bucket."""
    return f"{rate(f'{histogram}_sum', where=where)} / {rate(f'{histogram}_count', where=where)}"


SHARE = {"min": 0, "max": 1}
STATES = {"ready": "green", "starting": "yellow", "draining": "blue", "stopped": "red"}

NOW = [
    Panel(
        "Engine",
        "The state that the engine is in; requests are answered while it is ready.",
        [Query("preheat_engine_state == 1", "{{state}}")],
        kind="stat",
        width=4,
        height=4,
        defaults={"noValue": "no answer"},
        options={"textMode": "name", "colorMode": "background", "graphMode": "none"},
        colours=STATES,
    ),
    Panel(
        "Engine restarts",
        "How often the gateway started an engine again after it died.",
        [Query("preheat_engine_restarts", "restarts")],
        kind="stat",
        width=4,
        height=4,
        defaults={"thresholds": {"green": None, "orange": 1}},
    ),
    Panel(
        "Last start",
        "From the engine's start to its first token.",
        [Query("sum by (instance) (preheat_start_phase_seconds)", "start")],
        unit="s",
        kind="stat",
        width=4,
        height=4,
        options={"graphMode": "none"},
    ),
    Panel(
        "Graphs of the last start",
        "Loaded from the baked cache, or compiled because it did not hit: compiled should be 0.",
        [Query("preheat_compiled_graphs", "{{origin}}")],
        kind="stat",
        width=6,
        height=4,
        options={"textMode": "value_and_name", "graphMode": "none"},
        colours={"loaded": "green", "compiled": "orange"},
    ),
    Panel(
        "Alerts",
        "What fires now, of deploy/prometheus/rules.yml.",
        [Query('ALERTS{alertstate="firing"}', "{{alertname}}")],
        kind="stat",
        width=6,
        height=4,
        defaults={"noValue": "none", "thresholds": {"red": None}},
        options={"textMode": "name", "colorMode": "background", "graphMode": "none"},
    ),
    Panel(
        "Engine state",
        "The same over time: a restart is a gap in ready.",
        [Query("preheat_engine_state == 1", "{{state}}")],
        kind="state-timeline",
        width=12,
        colours=STATES,
    ),
    Panel(
        "Cold start, phase by phase",
        "Seconds of each phase of the last start, longest first.",
        [Query("sort_desc(preheat_start_phase_seconds)", "{{phase}}")],
        unit="s",
        kind="bargauge",
        width=12,
    ),
]

LATENCY = [
    Panel(
        "Time to first token",
        "From a request's arrival at the engine to its first token, queue and prefill included.",
        quantiles("vllm:time_to_first_token_seconds"),
        unit="s",
    ),
    Panel(
        "Inter-token latency",
        "Between two outputs of a stream; with drafts one holds several tokens, so the time per "
        "token is shorter. Quantiles below 10 ms, the engine's first bucket, are guesses.",
        [
            *quantiles("vllm:inter_token_latency_seconds"),
            Query(mean("vllm:inter_token_latency_seconds"), "mean"),
            Query(mean("vllm:request_time_per_output_token_seconds"), "mean per token"),
        ],
        unit="s",
    ),
    Panel(
        "Request latency",
        "At the gateway, from arrival to the last byte: grows with the answers' length.",
        [
            *quantiles("preheat_request_seconds", API),
            Query(mean("preheat_request_seconds", API), "mean"),
        ],
        unit="s",
    ),
    Panel(
        "Time in the queue",
        "Mean wait before the engine takes a request up. No quantiles: the engine's first bucket "
        "ends at 0.3 s, so even an empty queue would seem to cost 0.15 s.",
        [Query(mean("vllm:request_queue_time_seconds"), "mean")],
        unit="s",
    ),
    Panel(
        "Queue",
        "Requests that run, that wait in the engine for a slot or for KV cache, all that the "
        "gateway has sent there, and those that wait at the gateway for their turn.",
        [
            Query("sum(vllm:num_requests_running)", "running"),
            Query("sum(vllm:num_requests_waiting)", "waiting"),
            Query("sum(preheat_requests_in_flight)", "at the engine"),
            Query("sum(preheat_requests_waiting)", "waiting at the gateway"),
        ],
    ),
    Panel(
        "Tokens per second",
        "Read as prompts, and generated.",
        [
            Query(rate("vllm:prompt_tokens_total"), "prompt"),
            Query(rate("vllm:generation_tokens_total"), "generated"),
        ],
    ),
]

TRAFFIC = [
    Panel(
        "Requests per second",
        "By route, whatever the answer; what machines poll is left out.",
        [Query(rate("preheat_requests_total", "route", API), "{{route}}")],
        unit="reqps",
    ),
    Panel(
        "Errors by status",
        "Answers that are neither 2xx nor polled; left: the client went before there was one. The "
        "first error of a kind makes its series and is no growth yet.",
        [
            Query(
                rate(
                    "preheat_requests_total",
                    "status",
                    'route!~"/health|/ready|/metrics|/variant", status!~"2.."',
                ),
                "{{status}}",
            )
        ],
        unit="reqps",
        defaults={"noValue": "no errors"},
    ),
    Panel(
        "How answers ended",
        "The engine's reasons: a stop token, the length asked for, the client gone, an error.",
        [
            Query(rate("vllm:request_success_total", "finished_reason"), "{{finished_reason}}"),
            Query(rate("preheat_requests_cancelled_total"), "left, at the gateway"),
        ],
        unit="reqps",
    ),
]

# One draft is one step of one sequence: what is accepted, and the token that always comes.
PER_DRAFT = rate("vllm:spec_decode_num_drafts_total")
ENGINE = [
    Panel(
        "Acceptance length",
        "Tokens per step of a sequence: 1 and the drafted tokens accepted. Empty without drafts.",
        [
            Query(
                f"1 + {rate('vllm:spec_decode_num_accepted_tokens_total')} / {PER_DRAFT}",
                "tokens per step",
            )
        ],
        width=6,
        defaults={"min": 1},
    ),
    Panel(
        "Acceptance by position",
        "Share of drafts whose token at this position was accepted, from 0; falls with position.",
        [
            Query(
                f"{rate('vllm:spec_decode_num_accepted_tokens_per_pos_total', 'position')}"
                f" / on () group_left () {PER_DRAFT}",
                "position {{position}}",
            )
        ],
        unit="percentunit",
        width=6,
        defaults=SHARE,
    ),
    Panel(
        "KV cache in use",
        "Share of the blocks; near 1 requests wait, then are preempted.",
        [Query("max(vllm:kv_cache_usage_perc)", "in use")],
        unit="percentunit",
        width=6,
        defaults=SHARE,
    ),
    Panel(
        "Preemptions",
        "Requests a second that lost their KV cache to others and are computed again.",
        [Query(rate("vllm:num_preemptions_total"), "preempted")],
        unit="reqps",
        width=6,
    ),
]

ROWS = {
    "Now, and how it started": NOW,
    "Latency and load": LATENCY,
    "Requests": TRAFFIC,
    "Engine": ENGINE,
}


def panels() -> list[Panel]:
    """Every panel, in reading order."""
    return [panel for row in ROWS.values() for panel in row]


def text() -> str:
    """``deploy/grafana/dashboards/preheat.json``."""
    return json.dumps(dashboard(), indent=2) + "\n"


def dashboard() -> dict[str, Any]:
    """Grafana's own model of it."""
    return {
        "uid": UID,
        "title": "Preheat",
        "description": "One appliance: how it started, and how it serves.",
        "tags": ["preheat", "vllm"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "panels": placed(),
    }


def placed() -> list[dict[str, Any]]:
    """The panels with their ids and places: filled from the left, a heading above each row."""
    out: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        out.append(_heading(title, len(out) + 1, y))
        x, y, tallest = 0, y + 1, 0
        for panel in row:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            place = {"h": panel.height, "w": panel.width, "x": x, "y": y}
            out.append(_panel(panel, len(out) + 1, place))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return out


def _heading(title: str, number: int, y: int) -> dict[str, Any]:
    place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
    return {
        "id": number,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": place,
        "panels": [],
    }


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    defaults = dict(panel.defaults)
    steps = defaults.pop("thresholds", {"green": None})
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": [_target(q, i, panel.kind) for i, q in enumerate(panel.queries)],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "color": {"mode": "palette-classic" if _over_time(panel.kind) else "thresholds"},
                "thresholds": {
                    "mode": "absolute",
                    "steps": [{"color": colour, "value": at} for colour, at in steps.items()],
                },
                **_custom(panel.kind),
                **defaults,
            },
            "overrides": [_coloured(name, colour) for name, colour in panel.colours.items()],
        },
        "options": _options(panel.kind) | panel.options,
    }


def _target(query: Query, number: int, kind: Kind) -> dict[str, Any]:
    over_time = _over_time(kind)
    return {
        "refId": chr(ord("A") + number),
        "datasource": SOURCE,
        "expr": query.expression,
        "legendFormat": query.legend,
        "editorMode": "code",
        "range": over_time,
        "instant": not over_time,
    }


def _over_time(kind: Kind) -> bool:
    return kind in ("timeseries", "state-timeline")


def _custom(kind: Kind) -> dict[str, Any]:
    if kind == "timeseries":
        # From zero: half a millisecond more must not look like twice as much.
        return {"custom": {"fillOpacity": 8, "showPoints": "never", "axisSoftMin": 0}}
    return {}


def _options(kind: Kind) -> dict[str, Any]:
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if kind == "stat":
        return {"reduceOptions": last, "colorMode": "value", "graphMode": "area"}
    if kind == "bargauge":
        return {"reduceOptions": last, "orientation": "horizontal", "displayMode": "basic"}
    if kind == "state-timeline":
        return {"showValue": "never", "mergeValues": True, "rowHeight": 0.8}
    return {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _coloured(name: str, colour: str) -> dict[str, Any]:
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
    }
