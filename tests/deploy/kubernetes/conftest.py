"""The cluster, and images that its node has."""

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator

import helm_python as helm
import pytest
from docker import DockerClient

from serve.settings import REPOSITORY
from tests.deploy.kubernetes.charts import CPU
from tests.deploy.kubernetes.cluster import Cluster, get, kubectl

FAKE = "preheat-fake"
# The only one, and what tells its GPU.
NODE, LABEL = "localhost", "nvidia.com/gpu.product"
# What lies there is the node's own, built on its engine; nothing is ever fetched. It leaves for
# longer than an answer of the visitors takes: one that keeps its connection hears of it.
SMALL = {
    "image": {"pullPolicy": "Never"},
    "appliance": {
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "6Gi"}},
        "seconds": {"start": 120, "leave": 4, "drain": 15, "stop": 5, "margin": 6},
    },
}
# Runs of it: another version, and one whose engine dies at every start.
TAGS = {"one": "", "other": "--ready-after 0.5", "broken": "--crash-at-start"}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Whichever KUBECONFIG names. Where none answers: skipped, or failed if REQUIRE_K8S is set."""
    why = unreachable()
    if why and os.environ.get("REQUIRE_K8S"):
        pytest.fail(f"REQUIRE_K8S is set: {why}", pytrace=False)
    if why:
        pytest.skip(why)
    with helm.Config(kubeconfig_path=os.environ["KUBECONFIG"], namespace="default") as config:
        found = Cluster(config)
        found.uninstall()
        yield found
        found.uninstall()


def unreachable() -> str:
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names no cluster: shared/tools/k8s-debian.sh brings one up"
    if shutil.which("kubectl") is None:
        return "no kubectl here"
    asked = ["kubectl", "--request-timeout=5s", "get", "nodes", "--output", "name"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout.split() != [f"node/{NODE}"]:
        # Releases are deleted and nodes relabelled: not where somebody's pods are.
        return f"KUBECONFIG names a cluster of {done.stdout.split()}, and not one of {NODE} alone"
    return done.stderr.strip()


@pytest.fixture(scope="session")
def fake(client: DockerClient, image: str) -> Iterator[str]:
    """The repository of images with the fake engine, one for each of TAGS."""
    context = packed("tests", "tests/deploy/kubernetes/fake.Dockerfile")
    for tag, switches in TAGS.items():
        client.images.build(
            fileobj=io.BytesIO(context),
            custom_context=True,
            dockerfile="tests/deploy/kubernetes/fake.Dockerfile",
            tag=f"{FAKE}:{tag}",
            buildargs={"APPLIANCE": image, "SWITCHES": switches},
            rm=True,
        )
    yield FAKE
    for tag in TAGS:
        client.images.remove(f"{FAKE}:{tag}", force=True)


def packed(*names: str) -> bytes:
    """An archive of files of this repository, for a build."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in names:
            archive.add(REPOSITORY / name, name, filter=without_caches)
    return out.getvalue()


def without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member


@pytest.fixture
def card() -> Iterator[Callable[[str], None]]:
    """Gives the node a GPU as GPU feature discovery and a device plugin tell of one: a label, and
    something to ask for.
    """

    def put(product: str) -> None:
        kubectl("label", "node", NODE, f"{LABEL}={product}", "--overwrite")
        offer(1)

    yield put
    kubectl("label", "node", NODE, f"{LABEL}-")
    offer(0)


def offer(gpus: int) -> None:
    """So many GPUs are there to be asked for, as far as the scheduler knows."""
    node = get("node", NODE)
    for amounts in (node["status"]["capacity"], node["status"]["allocatable"]):
        amounts["nvidia.com/gpu"] = str(gpus)
    # Not what the kubelet changes all the while.
    del node["metadata"]["resourceVersion"]
    path = f"/api/v1/nodes/{NODE}/status"
    kubectl("replace", "--raw", path, "--filename", "-", said=json.dumps(node))


@pytest.fixture
def released(cluster: Cluster, fake: str) -> Iterator[Cluster]:
    """Two ready replicas with the fake engine, and nothing of them afterwards."""
    try:
        cluster.install(CPU, SMALL, of(fake, "one"))
        yield cluster
    finally:
        cluster.uninstall()


def of(repository: str, tag: str) -> dict[str, object]:
    return {"image": {"repository": repository, "tag": tag}}
