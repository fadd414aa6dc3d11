"""A real cluster, asked as a person does: `kubectl` for what is there, Helm for what is to be."""

import json
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import helm_python as helm

from tests.deploy.kubernetes.charts import CHART, RELEASE, merged

NAMESPACE = "default"
VARIANT = "seq8-best"
NAME = f"{RELEASE}-{VARIANT}"
SELECTOR = f"app.kubernetes.io/instance={RELEASE}"
# By which tests reach the pods from this machine: the chart's own Service is the cluster's.
DOOR = "preheat-test-door"
TIMEOUT_SECONDS = 300


class NotSo(AssertionError):
    """What the cluster was to become and did not; with what it is."""


@dataclass(frozen=True)
class Cluster:
    """One, and the release in it."""

    helm: helm.Config

    def install(self, *values: dict[str, Any], timeout: int = TIMEOUT_SECONDS) -> None:
        self.helm.install(str(CHART), RELEASE, merged(*values), wait="watcher", timeout=timeout)

    def upgrade(self, *values: dict[str, Any], timeout: int = TIMEOUT_SECONDS) -> None:
        """As the page has it: what does not get ready is taken back.

        :raises helm.HelmError: it was.
        """
        self.helm.upgrade(
            str(CHART),
            RELEASE,
            merged(*values),
            wait="watcher",
            timeout=timeout,
            rollback_on_failure=True,
        )

    def uninstall(self) -> None:
        self.helm.uninstall(RELEASE, ignore_not_found=True, wait="watcher", timeout=120)
        kubectl("delete", "service", DOOR, "--ignore-not-found")
        # Nobody asks them any more; this kubelet takes a minute to say that a pod has gone.
        kubectl("delete", "pods", "--selector", SELECTOR, "--force", "--grace-period=0")
        self.until(lambda: not self.pods(), 120)

    def open_door(self) -> str:
        """The URL at which this machine reaches the release's pods."""
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": DOOR},
            "spec": {
                "type": "NodePort",
                "selector": {"app.kubernetes.io/instance": RELEASE},
                "ports": [{"port": 80, "targetPort": "http"}],
            },
        }
        kubectl("apply", "-f", "-", said=json.dumps(service))
        (port,) = get("service", DOOR)["spec"]["ports"]
        url = f"http://127.0.0.1:{port['nodePort']}"
        self.until(lambda: answers(url), 30)
        return url

    def pods(self) -> list[dict[str, Any]]:
        """The release's, oldest first."""
        found: list[dict[str, Any]] = get("pods", "--selector", SELECTOR)["items"]
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def ready(self) -> list[str]:
        """Names of those that are, and are not on their way out."""
        return [
            pod["metadata"]["name"]
            for pod in self.pods()
            if "deletionTimestamp" not in pod["metadata"]
            and any(
                one["type"] == "Ready" and one["status"] == "True"
                for one in pod["status"].get("conditions", [])
            )
        ]

    def scale(self, replicas: int) -> None:
        kubectl("scale", "deployment", NAME, f"--replicas={replicas}")
        self.until(lambda: len(self.ready()) == len(self.pods()) == replicas, TIMEOUT_SECONDS)

    def replace(self, pod: str) -> None:
        """Delete one, and wait until it is gone and as many are ready as before."""
        before = len(self.ready())
        kubectl("delete", "pod", pod, "--wait=false")
        self.until(
            lambda: (
                pod not in {one["metadata"]["name"] for one in self.pods()}
                and len(self.ready()) == before
            ),
            180,
        )

    def until(self, true: Callable[[], object], seconds: float) -> Any:
        """The first true answer; none in time raises, with what the pods are."""
        deadline = time.monotonic() + seconds
        while not (answer := true()):
            if time.monotonic() > deadline:
                raise NotSo(kubectl("describe", "pods", "--selector", SELECTOR)[-6000:])
            time.sleep(0.25)
        return answer


def kubectl(*words: str, said: str | None = None) -> str:
    """What it prints; one that fails raises."""
    done = subprocess.run(
        ["kubectl", "--namespace", NAMESPACE, *words],
        input=said,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise NotSo(f"kubectl {' '.join(words)}: {done.stderr}")
    return done.stdout


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def get(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kubectl("get", *words, "--output", "json"))
    return found
