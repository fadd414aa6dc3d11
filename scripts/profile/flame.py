"""Draws a tree of times: one HTML file that needs nothing else, and speedscope's JSON."""

import html
import json
import zlib
from collections.abc import Iterator
from typing import Any

from scripts.profile.trace import Node

WIDTH = 1600
ROW = 17
# Narrower boxes cannot be seen.
LEAST = 0.6
CHARACTER = 6.3


def page(root: Node, title: str) -> str:
    """An icicle: callers above, width is time; the pointer shows name, time, share and calls.

    A click on a box makes it as wide as the page, one on the top brings all back.
    """
    boxes = list(_boxes(root, 0.0, 0, root.total or 1.0))
    height = (max(row for _, _, row, _ in boxes) + 1) * ROW
    drawn = "".join(_box(*box, root.total or 1.0) for box in boxes)
    name = html.escape(title)
    return (
        f'<!doctype html><meta charset="utf-8"><title>{name}</title>'
        "<style>body{font:12px monospace;margin:8px}svg{width:100%}text{pointer-events:none}"
        "rect{stroke:#fff;stroke-width:.5}</style>"
        f"<h1 style='font-size:14px'>{name}</h1>"
        f'<svg viewBox="0 0 {WIDTH} {height}" preserveAspectRatio="none" '
        f'height="{height}" font-size="11">{drawn}</svg>{SCRIPT}'
    )


SCRIPT = """<script>
const s=document.querySelector('svg'),h=s.viewBox.baseVal.height,W=s.viewBox.baseVal.width;
s.onclick=e=>{const g=e.target.closest('g');if(!g)return;const r=g.querySelector("rect");
s.setAttribute('viewBox',`${r.getAttribute('x')} 0 ${r.getAttribute('width')} ${h}`);
const k=r.getAttribute('width')/W;s.querySelectorAll('text').forEach(t=>{
const b=t.previousSibling,x=+b.getAttribute('x');
t.setAttribute('transform',`translate(${x+2*k} 0) scale(${k} 1)`);t.setAttribute('x',0);
t.textContent=t.parentNode.dataset.n.slice(0,Math.max(0,b.getAttribute('width')/k/6.3-1))})}
</script>"""


def _boxes(
    node: Node, x: float, row: int, total: float
) -> Iterator[tuple[Node, float, int, float]]:
    width = node.total / total * WIDTH
    if width < LEAST:
        return
    yield node, x, row, width
    for child in sorted(node.children.values(), key=lambda one: -one.total):
        yield from _boxes(child, x, row + 1, total)
        x += child.total / total * WIDTH


def _box(node: Node, x: float, row: int, width: float, total: float) -> str:
    name = html.escape(node.name, quote=True)
    told = f"{name}: {node.total / 1e3:.2f} ms, {node.total / total:.1%}, {node.calls} calls"
    seen = html.escape(node.name[: max(0, int(width / CHARACTER) - 1)])
    # The same name has the same colour in every picture.
    hue = zlib.crc32(node.name.encode()) % 60
    return (
        f'<g data-n="{name}"><title>{told}</title>'
        f'<rect x="{x:.2f}" y="{row * ROW}" width="{width:.2f}" height="{ROW}" '
        f'fill="hsl({hue},75%,70%)"/>'
        f'<text x="{x + 2:.2f}" y="{row * ROW + 12}">{seen}</text></g>'
    )


def speedscope(root: Node, title: str) -> dict[str, Any]:
    """The tree in speedscope's file format: each stack once, with its own microseconds."""
    names: dict[str, int] = {}
    samples, weights = [], []
    for path, node in root.walk():
        if node.own > 0:
            samples.append([names.setdefault(name, len(names)) for name in path])
            weights.append(round(node.own, 3))
    profile = {
        "type": "sampled",
        "name": title,
        "unit": "microseconds",
        "startValue": 0,
        "endValue": round(sum(weights), 3),
        "samples": samples,
        "weights": weights,
    }
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "shared": {"frames": [{"name": name} for name in names]},
        "profiles": [profile],
    }


def dump(root: Node, title: str) -> str:
    """``speedscope`` as text."""
    return json.dumps(speedscope(root, title), separators=(",", ":"))
