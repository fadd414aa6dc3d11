"""What of deploy/kubernetes/ is made from the code: the list of siblings, the plain rendering.

Helm's renderer comes from PyPI and runs in this process: no `helm` command, no cluster.
"""

import json

import helm_python as helm

from serve.settings import REPOSITORY
from serve.siblings import FAMILIES

FOLDER = REPOSITORY / "deploy" / "kubernetes"
CHART = FOLDER / "preheat"
SIBLINGS = CHART / "siblings.yaml"
PLAIN = FOLDER / "plain" / "preheat.yaml"
# Those who use the rendering make a Secret of this name.
VALUES = {"keys": {"secret": "preheat-keys"}, "variants": {"seq8-best": {}}}
MADE = "# Made by `make fix` {}; do not edit.\n"


def siblings() -> str:
    """The allow-list of GPUs as the chart reads it; JSON strings are YAML ones."""
    rows = "".join(f"  - {json.dumps([gpu.name for gpu in family])}\n" for family in FAMILIES)
    return MADE.format("from serve/siblings.py") + f"families:\n{rows}"


def plain() -> str:
    """The chart as it is, for those who have no Helm.

    :raises helm.HelmError: the chart cannot be rendered.
    """
    files = helm.Chart.load(CHART).render(VALUES, name="preheat", namespace="default")
    texts = [text.strip() for name, text in sorted(files.items()) if name.endswith(".yaml")]
    parts = [text.removeprefix("---").strip() for text in texts]
    return MADE.format("from the chart beside it") + "\n---\n".join(parts) + "\n"
