"""The chart on a real cluster: no accepted request is lost, whatever pods come and go."""

import json
from typing import Any

import helm_python as helm
import pytest

from scripts.fleet.router import running
from scripts.served import get as get_body
from tests.deploy.kubernetes.charts import CPU, RELEASE
from tests.deploy.kubernetes.cluster import NAME, NAMESPACE, VARIANT, Cluster, get, kubectl
from tests.deploy.kubernetes.conftest import SMALL, of
from tests.deploy.router.manifest import container
from tests.deploy.visitors import ask, said
from tests.image.checkouts import HERE

pytestmark = [pytest.mark.k8s, pytest.mark.docker, pytest.mark.timeout(1800)]

# Three engines at once on two cores take minutes to start, of which each is given its own.
APPLIANCE_SECONDS = 900
# What a pod has to itself.
OWN = ("--host", "--port")
# A share of them, too: one of 50m, on a core where another worker spins, got 2 ms a second.
APPLIANCE = {
    "appliance": {
        "seconds": {"start": 600, "drain": 60},
        "resources": {"requests": {"cpu": "500m"}},
    }
}


def test_two_replicas_answer_and_may_nothing_else(released: Cluster):
    assert len(released.ready()) == 2
    ask(released.open_door(), said("tiny", "hello", stream=True, tokens=4))
    pod = released.ready()[0]
    assert kubectl("exec", pod, "--", "id", "-u").strip() == "10001"
    status = kubectl("exec", pod, "--", "sh", "-c", "touch /opt/x 2>&1 || true")
    assert "Read-only file system" in status
    assert get("poddisruptionbudgets.policy", NAME)["spec"]["maxUnavailable"] == 1


def test_a_rolling_update_under_load_loses_nothing(released: Cluster, fake, visited):
    before = released.ready()
    with visited(released.open_door()) as seen:
        released.upgrade(CPU, SMALL, of(fake, "other"))
        released.until(lambda: len(released.pods()) == 2, 180)
    assert seen.lost == []
    assert seen.whole > 10
    assert set(released.ready()).isdisjoint(before)


def test_a_pod_deleted_in_mid_stream_ends_its_streams_whole(released: Cluster, visited):
    with visited(released.open_door()) as seen:
        for pod in released.ready():
            released.replace(pod)
    assert seen.lost == []
    assert seen.whole > 10


def test_a_rollout_that_never_gets_ready_is_taken_back_and_nobody_notices(
    released: Cluster, fake, visited
):
    before = set(released.ready())
    with visited(released.open_door()) as seen, pytest.raises(helm.HelmError):
        released.upgrade(CPU, SMALL, of(fake, "broken"), timeout=25)
    assert seen.lost == []
    assert set(released.ready()) == before
    (container,) = get("deployment", NAME)["spec"]["template"]["spec"]["containers"]
    assert container["image"].endswith(":one")


def test_from_one_to_three_and_back_to_one(released: Cluster, visited):
    with visited(released.open_door()) as seen:
        for replicas in (1, 3, 1):
            released.scale(replicas)
    assert seen.lost == []
    assert seen.whole > 10


def test_a_router_finds_pods_as_they_come_and_go_and_loses_nothing(
    released: Cluster, visited, tmp_path
):
    """As deploy/router has it, but outside: this cluster gives its pods no token to ask with."""
    told = {
        "$(NAMESPACE)": NAMESPACE,
        "instance=preheat": f"instance={RELEASE}",
        "variant=baseline": f"variant={VARIANT}",
    }
    words = container()["args"]
    for was, is_ in told.items():
        words = [word.replace(was, is_) for word in words]
    released.open_door()
    words = [word for word in words if not word.startswith(OWN)]
    with running(words, tmp_path / "router.log") as url, visited(url) as seen:
        for pod in released.ready():
            released.replace(pod)
    assert seen.lost == []
    assert seen.whole > 10


def test_a_node_of_another_gpu_gets_no_pod_and_one_of_a_sibling_does(cluster: Cluster, fake, card):
    gpu = {"appliance": {"replicas": 1, "gpu": {"baked": "NVIDIA A10G", "nodes": ["NVIDIA A40"]}}}
    card("NVIDIA-L4")
    try:
        with pytest.raises(helm.HelmError):
            cluster.install(CPU, SMALL, of(fake, "one"), gpu, timeout=15)
        (pod,) = cluster.pods()
        assert pod["status"]["phase"] == "Pending"
        (why,) = pod["status"]["conditions"]
        assert why["reason"] == "Unschedulable"
        assert "node affinity" in why["message"]
        card("NVIDIA-A40")
        cluster.until(lambda: len(cluster.ready()) == 1, 60)
    finally:
        cluster.uninstall()


def test_a_rolling_update_of_the_baked_image_loses_nothing(
    cluster: Cluster, image, visited, record_property
):
    """vLLM, two replicas of it, each started from the caches in the image."""
    values = (CPU, SMALL, of(*image.rsplit(":", 1)), APPLIANCE)
    try:
        cluster.install(*values, timeout=APPLIANCE_SECONDS)
        before, url = cluster.ready(), cluster.open_door()
        assert len(before) == 2
        # A third engine starts beside the two on the same cores: few clients leave it some.
        with visited(url, clients=2) as seen:
            again = {"appliance": {"annotations": {"turn": "2"}}}
            cluster.upgrade(*values, again, timeout=APPLIANCE_SECONDS)
            cluster.until(lambda: len(cluster.pods()) == 2, 180)
            assert set(cluster.ready()).isdisjoint(before)
        cache = variant_of(url)["engine"]["compile_cache"]
        for name in ("compiled", "loaded"):
            record_property(name, cache[name])
    finally:
        cluster.uninstall()
    assert seen.lost == []
    assert seen.whole > 10
    assert (cache["compiled"], cache["refused"]) == (0, [])
    assert cache["loaded"] > 0


def test_a_blob_of_the_node_is_served_from_what_was_baked_for_it(cluster: Cluster, image, tmp_path):
    """The image holds neither: weights and caches lie in a folder of the node."""
    tmp_path.chmod(0o755)
    for words in (
        ("bake", "pack", "tiny", "--codec", "raw", "--out", str(tmp_path / "lean")),
        ("image", "bake", str(tmp_path / "lean"), VARIANT),
    ):
        done = HERE.preheat(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    lean = {"appliance": {"replicas": 1, "blobs": {"node": str(tmp_path), "serve": "lean"}}}
    try:
        values = (CPU, SMALL, of(*image.rsplit(":", 1)), APPLIANCE, lean)
        cluster.install(*values, timeout=APPLIANCE_SECONDS)
        url = cluster.open_door()
        served = variant_of(url)
        ask(url, said("lean", "hello", stream=True, tokens=4))
    finally:
        cluster.uninstall()
    assert served["model"]["blob"]["codec"] == "raw"
    cache = served["engine"]["compile_cache"]
    assert (cache["compiled"], cache["refused"]) == (0, [])
    assert cache["loaded"] > 0


def variant_of(url: str) -> Any:
    return json.loads(get_body(f"{url}/variant"))
