"""The chart on a real cluster: no accepted request is lost, whatever pods come and go."""

import helm_python as helm
import pytest

from tests.deploy.kubernetes.charts import CPU
from tests.deploy.kubernetes.cluster import NAME, Cluster, get, kubectl
from tests.deploy.kubernetes.conftest import SMALL, of
from tests.deploy.visitors import ask, said, visitors

pytestmark = [pytest.mark.k8s, pytest.mark.docker, pytest.mark.timeout(900)]


def test_two_replicas_answer_and_may_nothing_else(released: Cluster, fake):
    assert len(released.ready()) == 2
    ask(released.open_door(), said("tiny", "hello", stream=True, tokens=4))
    pod = released.ready()[0]
    assert kubectl("exec", pod, "--", "id", "-u").strip() == "10001"
    status = kubectl("exec", pod, "--", "sh", "-c", "touch /opt/x 2>&1 || true")
    assert "Read-only file system" in status
    assert get("poddisruptionbudgets.policy", NAME)["spec"]["maxUnavailable"] == 1


def test_a_rolling_update_under_load_loses_nothing(released: Cluster, fake):
    before = released.ready()
    with visitors(released.open_door()) as seen:
        released.upgrade(CPU, SMALL, of(fake, "other"))
        released.until(lambda: len(released.pods()) == 2, 60)
    assert seen.lost == []
    assert seen.whole > 10
    assert set(released.ready()).isdisjoint(before)


def test_a_pod_deleted_in_mid_stream_ends_its_streams_whole(released: Cluster, fake):
    with visitors(released.open_door()) as seen:
        for pod in released.ready():
            kubectl("delete", "pod", pod, "--wait=false")
            released.until(
                lambda gone=pod: (
                    gone not in {one["metadata"]["name"] for one in released.pods()}
                    and len(released.ready()) == 2
                ),
                120,
            )
    assert seen.lost == []
    assert seen.whole > 10


def test_a_rollout_that_never_gets_ready_is_taken_back_and_nobody_notices(released: Cluster, fake):
    before = set(released.ready())
    with visitors(released.open_door()) as seen, pytest.raises(helm.HelmError):
        released.upgrade(CPU, SMALL, of(fake, "broken"), timeout=25)
    assert seen.lost == []
    assert set(released.ready()) == before
    (container,) = get("deployment", NAME)["spec"]["template"]["spec"]["containers"]
    assert container["image"].endswith(":one")


def test_from_one_to_three_and_back_to_one(released: Cluster, fake):
    with visitors(released.open_door()) as seen:
        for replicas in (1, 3, 1):
            released.scale(replicas)
    assert seen.lost == []
    assert seen.whole > 10
