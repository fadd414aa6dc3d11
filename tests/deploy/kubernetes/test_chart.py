"""What the chart makes of its values, held against Kubernetes' own schemas and our promises."""

import json
import os
import shutil
import subprocess
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from scripts import chart
from serve import siblings
from serve.settings import Settings
from tests.deploy.kubernetes.charts import (
    CHART,
    CPU,
    NAMESPACE,
    merged,
    of_kind,
    refusal,
    rendered,
)

KUBERNETES = "1.33"
# What operators bring; their schemas are not Kubernetes' own.
OTHERS = ("ServiceMonitor", "HTTPRoute", "ScaledObject")
# Who is to be let in, wherever it lives.
FROM = {"network": {"from": [{"namespaceSelector": {}}]}}
GATEWAY = {**FROM, "routes": {"enabled": True, "gateways": [{"name": "inference"}]}}
GPU = {"keys": {"none": True}, "variants": {"seq8-best": {}}}
MODELS = {"appliance": {"models": ["chat"]}}
VALUES: dict[str, tuple[dict[str, Any], ...]] = {
    "as it is": (GPU,),
    "no GPU": (CPU,),
    "keys": (GPU, {"keys": {"secret": "keys"}}),
    "two variants": (CPU, {"variants": {"baseline": {"replicas": 1}}}),
    "two GPUs each": (CPU, {"appliance": {"gpu": {"baked": "NVIDIA A10G", "count": 2}}}),
    "hpa": (CPU, {"appliance": {"scaling": {"by": "hpa"}}}),
    "keda": (CPU, FROM, {"appliance": {"scaling": {"by": "keda"}}}),
    "routes": (CPU, GATEWAY, MODELS),
    "monitor": (CPU, FROM, {"monitor": {"enabled": True, "key": {"secret": "scrape"}}}),
    "blobs of an image": (CPU, {"appliance": {"blobs": {"image": "r/blobs:1", "serve": "int5"}}}),
    "blobs copied": (CPU, {"appliance": {"blobs": {"init": "r/blobs:1"}}}),
    "blobs of a claim": (CPU, {"appliance": {"blobs": {"claim": "blobs"}}}),
    "blobs of the node": (CPU, {"appliance": {"blobs": {"node": "/var/lib/preheat"}}}),
}


def deployment(*values: dict[str, Any]) -> dict[str, Any]:
    return of_kind(rendered(*values), "Deployment")


def pod(*values: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = deployment(*values)["spec"]["template"]["spec"]
    return spec


def environment(*values: dict[str, Any]) -> dict[str, str]:
    (container,) = pod(*values)["containers"]
    return {one["name"]: one["value"] for one in container["env"]}


@pytest.mark.parametrize("case", VALUES)
def test_what_it_makes_is_valid(case):
    for one in rendered(*VALUES[case]):
        if one["kind"] not in OTHERS:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_a_field_that_kubernetes_does_not_know_would_be_seen():
    one = deployment(CPU)
    one["spec"]["template"]["spec"]["containers"][0]["prestop"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


@pytest.mark.parametrize("case", VALUES)
def test_helms_linter_finds_nothing_worth_a_warning(case):
    found = helm.lint(CHART, merged(*VALUES[case]), strict=True)
    assert found["errors"] == []
    assert [one for one in found["messages"] if one["severity"] > 1] == []


def test_every_object_names_its_release_and_its_variant():
    objects = rendered(CPU, {"variants": {"baseline": {}}})
    assert {one["metadata"]["labels"]["app.kubernetes.io/instance"] for one in objects} == {"demo"}
    named = {one["metadata"]["name"] for one in objects if one["kind"] == "Deployment"}
    assert named == {"demo-seq8-best", "demo-baseline"}


def test_what_a_variant_has_otherwise_goes_before_what_all_have():
    objects = rendered(CPU, {"variants": {"baseline": {"replicas": 1, "seconds": {"drain": 60}}}})
    one, other = (of_kind(objects, "Deployment", f"demo-{v}") for v in ("baseline", "seq8-best"))
    assert (one["spec"]["replicas"], other["spec"]["replicas"]) == (1, 2)
    grace = "terminationGracePeriodSeconds"
    apart = one["spec"]["template"]["spec"][grace] - other["spec"]["template"]["spec"][grace]
    assert apart == 30


class TestPod:
    def test_it_may_nothing(self):
        spec = pod(CPU)
        (container,) = spec["containers"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }

    def test_it_has_the_time_to_leave_drain_and_stop_before_it_is_killed(self):
        seconds = {"leave": 7, "drain": 40, "stop": 11, "margin": 6}
        spec = pod(CPU, {"appliance": {"seconds": seconds}})
        assert spec["terminationGracePeriodSeconds"] == 64
        (container,) = spec["containers"]
        leave = ["sh", "-c", "kill -USR1 1; sleep 7"]
        assert container["lifecycle"]["preStop"]["exec"]["command"] == leave
        told = environment(CPU, {"appliance": {"seconds": seconds}})
        assert (told["PREHEAT_DRAIN_SECONDS"], told["PREHEAT_STOP_SECONDS"]) == ("40", "11")

    def test_it_is_ready_when_a_token_was_generated_and_has_the_time_of_a_start(self):
        made = deployment(CPU, {"appliance": {"seconds": {"start": 90}}})["spec"]
        (container,) = made["template"]["spec"]["containers"]
        startup, ready = container["startupProbe"], container["readinessProbe"]
        assert startup["httpGet"]["path"] == ready["httpGet"]["path"] == "/ready"
        # The gateway gives up first, and says why.
        least = 90 + int(environment(CPU)["PREHEAT_STOP_SECONDS"])
        assert startup["periodSeconds"] * startup["failureThreshold"] > least
        assert made["progressDeadlineSeconds"] > least
        # A gateway whose engine starts again is not killed for it.
        assert container["livenessProbe"]["httpGet"]["path"] == "/health"

    def test_all_its_settings_are_settings_of_the_gateway(self):
        told = environment(
            GPU,
            {"keys": {"secret": "keys"}},
            MODELS,
            {"appliance": {"blobs": {"claim": "c", "serve": "b"}}},
        )
        known = {name.lower().removeprefix("preheat_") for name in told}
        assert known <= set(Settings.model_fields)

    def test_a_setting_of_ones_own_goes_before_the_charts(self):
        own = {"PREHEAT_LOG_FORMAT": "text", "PREHEAT_MAX_QUEUED": 2000000}
        own |= {"PREHEAT_HANG_SECONDS": 0.5, "PREHEAT_RETUNE": True}
        told = environment(CPU, {"appliance": {"settings": own}})
        assert {name: told[name] for name in own} == {
            "PREHEAT_LOG_FORMAT": "text",
            "PREHEAT_MAX_QUEUED": "2000000",
            "PREHEAT_HANG_SECONDS": "0.5",
            "PREHEAT_RETUNE": "true",
        }

    def test_keys_are_read_from_the_secret_and_by_its_group_alone(self):
        spec = pod(GPU, {"keys": {"secret": "team", "file": "k.json"}})
        volume = next(one for one in spec["volumes"] if one["name"] == "keys")
        assert volume["secret"] == {"secretName": "team", "defaultMode": 0o440}
        told = environment(GPU, {"keys": {"secret": "team", "file": "k.json"}})
        assert told["PREHEAT_KEYS_FILE"] == "/etc/preheat/k.json"
        assert "PREHEAT_NO_KEYS" not in told

    def test_a_digest_goes_before_the_tag(self):
        digest = f"sha256:{'a' * 64}"
        (container,) = pod(CPU, {"image": {"digest": digest}})["containers"]
        assert container["image"] == f"preheat@{digest}"

    @pytest.mark.parametrize(
        ("source", "volume"),
        [
            ("image", {"image": {"reference": "x", "pullPolicy": "IfNotPresent"}}),
            ("init", {"emptyDir": {}}),
            ("claim", {"persistentVolumeClaim": {"claimName": "x", "readOnly": True}}),
            ("node", {"hostPath": {"path": "/x", "type": "Directory"}}),
        ],
    )
    def test_blobs_are_mounted_read_only_whatever_they_come_from(self, source, volume):
        named = "/x" if source == "node" else "x"
        values = {"appliance": {"blobs": {source: named, "serve": "int5"}}}
        spec = pod(CPU, values)
        assert {"name": "blobs", **volume} in spec["volumes"]
        mounts = {one["name"]: one for one in spec["containers"][0]["volumeMounts"]}
        assert mounts["blobs"]["readOnly"] is True
        told = environment(CPU, values)
        assert told["MODEL"] == "/opt/preheat/blobs/int5"
        # The image has no cache for that path.
        assert told["PREHEAT_BAKED_ROOT"] == "/opt/preheat/blobs/baked"


class TestGpu:
    @staticmethod
    def products(spec: dict[str, Any]) -> list[str]:
        required = spec["affinity"]["nodeAffinity"]
        (term,) = required["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        (expression,) = term["matchExpressions"]
        assert (expression["key"], expression["operator"]) == ("nvidia.com/gpu.product", "In")
        values: list[str] = expression["values"]
        return values

    def test_a_pod_goes_where_the_cache_was_baked_for_and_takes_one_gpu(self):
        spec = pod(GPU)
        assert self.products(spec) == ["NVIDIA-A10G"]
        assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"

    @pytest.mark.parametrize("family", siblings.FAMILIES, ids=lambda family: family[0].name)
    def test_a_sibling_is_let_in_and_everybody_else_is_refused(self, family):
        mine = [gpu.name for gpu in family]
        others = [gpu.name for each in siblings.FAMILIES if each != family for gpu in each]
        baked = {"appliance": {"gpu": {"baked": mine[0], "nodes": mine}}}
        assert self.products(pod(GPU, baked)) == [name.replace(" ", "-") for name in mine]
        for other in [*others, "NVIDIA L4", "nvidia a10g"]:
            mixed = {"appliance": {"gpu": {"baked": mine[0], "nodes": [mine[0], other]}}}
            told = refusal(GPU, mixed)
            assert f"variants.seq8-best.gpu.nodes: {other} is no sibling of {mine[0]}" in told

    def test_a_gpu_that_nobody_has_listed_may_serve_what_was_baked_on_it_and_no_other(self):
        own = {"appliance": {"gpu": {"baked": "NVIDIA L4"}}}
        assert self.products(pod(GPU, own)) == ["NVIDIA-L4"]
        told = refusal(GPU, own, {"appliance": {"gpu": {"nodes": ["NVIDIA A10G"]}}})
        assert "Allowed: NVIDIA L4;" in told

    def test_the_charts_list_is_the_gateways(self):
        listed = yaml.safe_load((CHART / "siblings.yaml").read_text(encoding="utf-8"))
        assert listed["families"] == [[gpu.name for gpu in one] for one in siblings.FAMILIES]

    def test_ranks_get_the_shared_memory_they_talk_by(self):
        spec = pod(GPU, {"appliance": {"gpu": {"count": 2}}})
        assert "shm" in {one["name"] for one in spec["volumes"]}
        assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"

    def test_without_a_gpu_none_is_asked_for(self):
        spec = pod(CPU)
        assert "affinity" not in spec
        assert "tolerations" not in spec
        assert set(spec["containers"][0]["resources"]["limits"]) == {"memory"}


class TestScaling:
    def test_it_begins_with_no_fewer_than_there_were_to_be(self):
        assert deployment(CPU)["spec"]["replicas"] == 2
        for least, begun in ((1, 2), (3, 3)):
            scaling = {"appliance": {"scaling": {"by": "hpa", "min": least}}}
            assert deployment(CPU, scaling)["spec"]["replicas"] == begun

    def test_both_look_at_requests_and_at_tokens_in_flight(self):
        hpa = of_kind(rendered(*VALUES["hpa"]), "HorizontalPodAutoscaler")
        asked = {one["pods"]["metric"]["name"] for one in hpa["spec"]["metrics"]}
        keda = of_kind(rendered(*VALUES["keda"]), "ScaledObject")
        queries = " ".join(one["metadata"]["query"] for one in keda["spec"]["triggers"])
        for metric in asked:
            assert metric.replace("vllm_", "vllm:") in queries
        # Of this variant alone, and none when nobody knows.
        assert f'namespace="{NAMESPACE}", service="demo-seq8-best"' in queries
        for one in keda["spec"]["triggers"]:
            assert one["metadata"]["ignoreNullValues"] == "false"


class TestNetwork:
    def test_nobody_outside_the_namespace_comes_in_and_nothing_goes_out(self):
        spec = of_kind(rendered(CPU), "NetworkPolicy")["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert spec["egress"] == []
        (rule,) = spec["ingress"]
        assert rule["from"] == [{"podSelector": {}}]

    def test_a_route_leads_each_name_to_its_variant(self):
        variants = {"variants": {"seq8-best": {"models": ["chat"]}, "seq8": {"models": ["a", "b"]}}}
        # Else a Gateway's own default would cut long streams.
        for rule in of_kind(rendered(CPU, GATEWAY, variants), "HTTPRoute")["spec"]["rules"]:
            assert rule["timeouts"] == {"request": "0s"}
        route = of_kind(rendered(CPU, GATEWAY, variants), "HTTPRoute")
        led = {
            match["headers"][0]["value"]: rule["backendRefs"][0]["name"]
            for rule in route["spec"]["rules"]
            for match in rule["matches"]
        }
        assert led == {"chat": "demo-seq8-best", "a": "demo-seq8", "b": "demo-seq8"}

    def test_prometheus_shows_the_key_that_it_was_given(self):
        spec = of_kind(rendered(*VALUES["monitor"]), "ServiceMonitor")["spec"]
        (endpoint,) = spec["endpoints"]
        assert (endpoint["path"], endpoint["port"]) == ("/metrics", "http")
        assert endpoint["authorization"]["credentials"] == {"name": "scrape", "key": "token"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"keys": {"none": False}}, "keys: nobody would have to show a key"),
        ({**FROM, "routes": {"enabled": True}}, "routes.gateways: empty"),
        ({"routes": {"enabled": True}}, "network.from: empty"),
        ({"monitor": {"enabled": True}}, "network.from: empty"),
        ({"appliance": {"scaling": {"by": "keda"}}}, "network.from: empty"),
        (
            {**FROM, "keys": {"secret": "k"}, "monitor": {"enabled": True}},
            "monitor.key.secret: empty",
        ),
        ({**MODELS, "variants": {"seq8": {}}}, "chat is a name of seq8 already"),
        ({"variants": {"a" * 48: {}}}, "has 53 letters"),
        ({"variants": {"seq8": None}}, "/variants/seq8"),
        ({"appliance": {"seconds": None}}, "/appliance"),
        ({"appliance": {"seconds": {"start": None}}}, "/appliance/seconds"),
        ({"appliance": {"scaling": {"min": 0}}}, "/appliance/scaling/min"),
        ({"image": {"tag": None}}, "/image"),
        (
            {"appliance": {"rollout": {"maxSurge": "0%"}}},
            "maxSurge and maxUnavailable are both 0",
        ),
        (GATEWAY, "variants.seq8-best.models: empty"),
        ({"appliance": {"gpu": {"nodes": ["NVIDIA A10G"]}}}, "gpu.baked is empty"),
        (
            {"appliance": {"scaling": {"by": "hpa", "min": 5}}},
            "variants.seq8-best.scaling: min 5 is above max 4",
        ),
        (
            {"appliance": {"rollout": {"maxSurge": 0}}},
            "maxSurge and maxUnavailable are both 0",
        ),
        (
            {"appliance": {"blobs": {"image": "a", "claim": "b"}}},
            "variants.seq8-best.blobs: 2 sources",
        ),
        ({"appliance": {"blobs": {"serve": "a"}}}, "no source of blobs"),
        ({"appliance": {"gpus": {}}}, "additional properties 'gpus' not allowed"),
        ({"variants": {"Seq_8": {}}}, "Seq_8"),
        ({"variants": {"seq8": {"replicas": "two"}}}, "/variants/seq8"),
        ({"appliance": {"settings": {"PREHEAT_NO_KEYS": "true"}}}, "PREHEAT_NO_KEYS"),
        ({"appliance": {"settings": {"PATH": "/tmp"}}}, "PATH"),
        ({"image": {"digest": "sha256:abc"}}, "/image/digest"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_that_cannot_work_are_told_and_nothing_is_rendered(values, told):
    assert told in refusal(CPU, values)


def test_without_a_variant_nothing_is_rendered():
    assert "variants: empty" in refusal({"keys": {"none": True}})


def test_a_route_of_more_rules_than_there_can_be_is_told():
    many = {f"v{n}": {"models": [f"m{n}"]} for n in range(17)}
    values = {**GATEWAY, "keys": {"none": True}, "variants": many}
    assert "17 variants" in refusal(values)


@pytest.mark.parametrize("variant", ["1", "true", "1e3"])
def test_a_name_that_looks_like_something_else_stays_a_name(variant):
    for one in rendered({"keys": {"none": True}, "variants": {variant: {}}}):
        for value in one["metadata"]["labels"].values():
            assert isinstance(value, str)


def test_every_value_is_in_the_schema_and_every_default_is_valid():
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))

    def same(told: Any, known: dict[str, Any], at: str) -> None:
        known = known.get("allOf", [known])[0]
        known = (
            schema["definitions"][known["$ref"].rpartition("/")[2]] if "$ref" in known else known
        )
        if "properties" in known:
            ours = set(told) | ({"global"} if at == "" else set())
            assert ours == set(known["properties"]), at
            for name, value in told.items():
                same(value, known["properties"][name], f"{at}.{name}")

    same(values, schema, "")


class TestPlain:
    """What is there for those who have no Helm."""

    def test_it_is_valid_as_it_lies_there(self):
        objects = [
            one for one in yaml.safe_load_all(chart.PLAIN.read_text(encoding="utf-8")) if one
        ]
        assert {"Deployment", "Service", "NetworkPolicy"} <= {one["kind"] for one in objects}
        for one in objects:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)

    def test_kustomize_takes_it_with_an_image_of_ones_own(self, tmp_path):
        if kustomize() < (1, 21):
            pytest.skip("no kubectl here, or one of before 1.21: a base was no resource then")
        base = os.path.relpath(chart.PLAIN.parent, tmp_path)
        digest = f"sha256:{'b' * 64}"
        (tmp_path / "kustomization.yaml").write_text(
            yaml.safe_dump(
                {
                    "resources": [base],
                    "namespace": "models",
                    "images": [{"name": "preheat", "newName": "r/preheat", "digest": digest}],
                }
            )
        )
        told = subprocess.run(
            ["kubectl", "kustomize", "."], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        objects = list(yaml.safe_load_all(told.stdout))
        (container,) = of_kind(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
        assert container["image"] == f"r/preheat@{digest}"
        assert {one["metadata"]["namespace"] for one in objects} == {"models"}


def kustomize() -> tuple[int, int]:
    """The version of the kubectl that is here; (0, 0) where none is."""
    if shutil.which("kubectl") is None:
        return 0, 0
    asked = ["kubectl", "version", "--client", "--output", "json"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    client = json.loads(said)["clientVersion"]
    return int(client["major"]), int(client["minor"].rstrip("+"))
