"""The chart, rendered by Helm's own library: no cluster and no `helm` command is asked."""

from typing import Any

import helm_python as helm
import yaml

from serve.settings import REPOSITORY

CHART = REPOSITORY / "deploy" / "kubernetes" / "preheat"
RELEASE, NAMESPACE = "demo", "models"
# Nothing that a GPU, a cluster of today or an operator is needed for.
CPU: dict[str, Any] = {
    "keys": {"none": True},
    "image": {"tag": "0.1.0-cpu-tiny"},
    "appliance": {"gpu": {"baked": ""}},
    "variants": {"seq8-best": {}},
}

Objects = list[dict[str, Any]]


def merged(*values: dict[str, Any]) -> dict[str, Any]:
    """As Helm takes several files of values: later ones go before, mappings are merged."""
    whole: dict[str, Any] = {}
    for each in values:
        for key, value in each.items():
            both = isinstance(value, dict) and isinstance(whole.get(key), dict)
            whole[key] = merged(whole[key], value) if both else value
    return whole


def rendered(*values: dict[str, Any]) -> Objects:
    """The objects that the chart makes of the values.

    :raises helm.HelmError: it refuses them.
    """
    files = helm.Chart.load(CHART).render(merged(*values), name=RELEASE, namespace=NAMESPACE)
    return [
        one
        for name, text in sorted(files.items())
        if name.endswith(".yaml")
        for one in yaml.safe_load_all(text)
        if one
    ]


def of_kind(objects: Objects, kind: str, name: str = "") -> dict[str, Any]:
    """The one object of a kind, or the one of a name."""
    found = [
        one for one in objects if one["kind"] == kind and name in ("", one["metadata"]["name"])
    ]
    assert len(found) == 1, [(one["kind"], one["metadata"]["name"]) for one in objects]
    return found[0]


def refusal(*values: dict[str, Any]) -> str:
    """What the chart says instead of rendering."""
    try:
        rendered(*values)
    except helm.HelmError as error:
        return str(error)
    raise AssertionError("rendered")
