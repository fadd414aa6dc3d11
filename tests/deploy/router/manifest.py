"""The objects of deploy/router, as they lie there."""

from typing import Any

import yaml

from serve.settings import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "router"
OBJECTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))
)


def container() -> dict[str, Any]:
    """The router's own."""
    (deployment,) = [one for one in OBJECTS if one["kind"] == "Deployment"]
    (one,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(one)
