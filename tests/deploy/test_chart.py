"""The Helm chart, rendered by Helm's own library and checked against Kubernetes' schemas."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from commands import ROOT, parse

from nowcast_server.settings import Settings

helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")
schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")

CHART = ROOT / "deploy" / "chart"
KUBERNETES = ("1.29", "1.34")

SERVER: dict[str, Any] = {}
GPU = {"server": {"gpus": 1, "tls": {"secret": "certificate", "mutual": True}, "settings": {"NOWCAST_OTEL": "true"}}}
RECORDING = {
    "server": {
        "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}}],
        "volumeMounts": [{"name": "runs", "mountPath": "/runs"}],
        "settings": {"NOWCAST_RECORD": "/runs/recorded"},
    }
}
RAY = {"server": {"enabled": False}, "serve": {"enabled": True}, "train": {"enabled": True, "gpus": 2}}
CPU_RAY = {"server": {"enabled": False}, "serve": {"enabled": True, "gpus": 0, "cpus": 4}}
REMOTE = {
    "server": {"enabled": False},
    "train": {"enabled": True, "server": "https://elsewhere:8440", "storage": {"className": "fast", "accessMode": "ReadWriteOnce"}},
}
HTTPS = {"server": {"tls": {"secret": "certificate", "mutual": True}}, "train": {"enabled": True, "certificate": "client"}}
CASES = {"server": SERVER, "https": HTTPS, "gpu": GPU, "recording": RECORDING, "ray": RAY, "cpu-ray": CPU_RAY, "remote": REMOTE}
every_case = pytest.mark.parametrize("values", CASES.values(), ids=CASES)


def render(values: dict[str, Any]) -> list[Any]:
    """The resources that `helm install nowcast deploy/chart` would create."""
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="nowcast", namespace="research")
    return [document for text in files.values() for document in yaml.safe_load_all(text) if document]


def of_kind(documents: list[Any], kind: str) -> Any:
    """The one resource of a kind."""
    (found,) = (each for each in documents if each["kind"] == kind)
    return found


def pods(document: Any, *, kind: str = "") -> Iterator[Any]:
    """Every pod template in a resource, with the labels that its pods have."""
    if isinstance(document, dict):
        if "containers" in document.get("spec", {}):
            node = {"headGroupSpec": "head", "workerGroupSpecs": "worker"}.get(kind)
            labels = document["metadata"]["labels"] | ({"ray.io/node-type": node} if node else {})
            yield {**document, "metadata": {"labels": labels}}
        for key, each in document.items():
            yield from pods(each, kind=key if key.endswith(("Spec", "Specs")) else kind)
    elif isinstance(document, list):
        for each in document:
            yield from pods(each, kind=kind)


def cluster_of(document: Any) -> Any:
    """The Ray cluster of a RayJob or RayService."""
    return document["spec"].get("rayClusterConfig") or document["spec"]["rayClusterSpec"]


def selects(selector: dict[str, str], pod: Any) -> bool:
    """Do the pod's labels match?"""
    return bool(selector.items() <= pod["metadata"]["labels"].items())


@every_case
def test_lint_finds_nothing(values: dict[str, Any]) -> None:
    """`helm lint --strict` would fail, or values would not fit their schema."""
    messages = helm.lint(str(CHART), values, strict=True)["messages"]
    assert [each["error"] for each in messages] == ["icon is recommended"]


@pytest.mark.parametrize(
    "values", [{"server": {"gpu": 1}}, {"serve": {"gpus": "1"}}, {"server": {"tls": {"mutual": True}}}, {"x": 1}]
)
def test_wrong_values_are_refused(values: dict[str, Any]) -> None:
    """A misspelt value would be ignored: a server without the GPU that was asked for."""
    assert helm.lint(str(CHART), values)["errors"]


@every_case
@pytest.mark.parametrize("version", KUBERNETES)
def test_resources_follow_the_schema(values: dict[str, Any], version: str) -> None:
    """`kubectl apply` would refuse a resource, or drop a field without a word."""
    for document in render(values):
        if document["apiVersion"] == "ray.io/v1":
            for pod in pods(document):
                schemas.validate({"apiVersion": "v1", "kind": "Pod", **pod}, version, strict=True)
        else:
            schemas.validate(document, version, strict=True)


def test_the_chart_is_of_the_version_it_deploys() -> None:
    """Resources would be labelled with a version that nobody runs."""
    chart, project = yaml.safe_load((CHART / "Chart.yaml").read_text()), tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {chart["version"], chart["appVersion"]} == {project["project"]["version"]}


def test_a_server_that_may_call_somebody_finds_it_by_name() -> None:
    """Traces would be lost: the collector's name could not be looked up."""
    collector = {"to": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": 4317}]}
    names, rule = of_kind(render({"network": {"serverEgress": [collector]}}), "NetworkPolicy")["spec"]["egress"]
    assert {each["port"] for each in names["ports"]} == {53}
    assert rule == collector
    assert of_kind(render({}), "NetworkPolicy")["spec"]["egress"] == []


@pytest.mark.parametrize(
    ("variable", "file", "secret"),
    [
        ("SERVER_CA", "ca.crt", {"secretName": "certificate", "items": [{"key": "ca.crt", "path": "ca.crt"}]}),  # not its key
        ("CLIENT_CERT", "tls.crt", {"secretName": "client"}),
        ("CLIENT_KEY", "tls.key", {"secretName": "client"}),
    ],
)
def test_training_pods_have_the_certificates_they_need(variable: str, file: str, secret: dict[str, Any]) -> None:
    """A job beside a server with HTTPS, or mutual TLS, would train without a single nowcast; or hold the server's key."""
    for pod in pods(cluster_of(of_kind(render(HTTPS), "RayJob"))):
        (container,) = pod["spec"]["containers"]
        (place,) = [each["value"] for each in container["env"] if each["name"] == f"NOWCAST_{variable}"]
        (mount,) = [each for each in container["volumeMounts"] if place == f"{each['mountPath']}/{file}"]
        assert {"name": mount["name"], "secret": secret} in pod["spec"]["volumes"]


def test_a_volume_of_the_operators_is_where_settings_look() -> None:
    """The root file system is read-only: recordings would fail, checkpoints be missing."""
    (pod,) = pods(of_kind(render(RECORDING), "Deployment"))
    (container,) = pod["spec"]["containers"]
    given = RECORDING["server"]
    assert given["volumes"][0] in pod["spec"]["volumes"]
    assert given["volumeMounts"][0] in container["volumeMounts"]


def test_the_submitter_knows_what_the_entrypoint_names() -> None:
    """KubeRay puts the entrypoint into a command of the submitter's shell, which would read a variable of the head's as nothing."""
    job = of_kind(render(RAY), "RayJob")["spec"]
    (submitter,) = job["submitterPodTemplate"]["spec"]["containers"]
    (head,) = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    named = set(re.findall(r"\$(\w+)", job["entrypoint"]))
    assert named == {each["name"] for each in submitter["env"]}
    assert all(each in head["env"] for each in submitter["env"])


def test_ray_nodes_are_of_the_images_version_and_want_a_token() -> None:
    """Nodes of another version than the image's do not join; without a token whoever reaches them runs code."""
    (locked,) = re.findall(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    ray = [each for each in render(RAY) if each["apiVersion"] == "ray.io/v1"]
    assert {each["kind"] for each in ray} == {"RayService", "RayJob"}
    for cluster in map(cluster_of, ray):
        assert (cluster["rayVersion"], cluster["authOptions"]) == (locked, {"mode": "token"})


@every_case
def test_server_accepts_its_settings(values: dict[str, Any]) -> None:
    """The server would end at once over a setting, or ignore a misspelt one and run with its default."""
    for document in render(values):
        if document["kind"] == "Deployment":
            (container,) = document["spec"]["template"]["spec"]["containers"]
            given = {each["name"].removeprefix("NOWCAST_").lower(): each["value"] for each in container["env"]}
            assert Settings(**given).threads == 2
            assert parse(["nowcast-server", *container["args"]])


@pytest.mark.parametrize(
    ("values", "limit"), [({}, "12Gi"), ({"server": {"historiesGiB": 16, "forecastsGiB": 8, "overheadGiB": 3}}, "32Gi")]
)
def test_memory_limit_follows_from_the_budgets(values: dict[str, Any], limit: str) -> None:
    """The kernel would kill a server that keeps to its own budgets: it may exceed them by 20%."""
    (pod,) = pods(of_kind(render(values), "Deployment"))
    assert pod["spec"]["containers"][0]["resources"]["limits"]["memory"] == limit


def test_serve_config_is_that_of_deploy_serve_yaml() -> None:
    """A change to deploy/serve.yaml would not reach Kubernetes."""
    config = yaml.safe_load(of_kind(render(RAY), "RayService")["spec"]["serveConfigV2"])
    assert config == yaml.safe_load((ROOT / "deploy/serve.yaml").read_text())


@pytest.mark.parametrize(
    ("values", "server"),
    [(RAY, "http://nowcast-serve-svc:8440"), ({"train": {"enabled": True}}, "http://nowcast-server:8440"),
     (REMOTE, "https://elsewhere:8440"), (GPU | {"train": {"enabled": True}}, "https://nowcast-server:8440")],
)  # fmt: skip
def test_training_job_calls_the_releases_server(values: dict[str, Any], server: str) -> None:
    """The job would train without nowcasts, call a server that is not there, or fail when it is tried again."""
    job = of_kind(render(values), "RayJob")
    for node in ("headGroupSpec", "workerGroupSpecs"):
        for pod in pods(cluster_of(job)[node]):
            assert {"name": "NOWCAST_SERVER", "value": server} in pod["spec"]["containers"][0]["env"]
    options = parse(job["spec"]["entrypoint"])
    assert options["server"] == "$NOWCAST_SERVER"
    assert options["resume"]


@every_case
def test_every_container_is_confined_and_has_the_image_it_needs(values: dict[str, Any]) -> None:
    """A pod would run as root, or without a limit on its memory; or the CPU's image on the node of a GPU."""
    for pod in (found for document in render(values) for found in pods(document)):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            gpus = int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
            assert container["image"].endswith(":gpu" if gpus else ":cpu")
            assert bool(gpus) == any(each["key"] == "nvidia.com/gpu" for each in pod["spec"].get("tolerations", []))


@every_case
def test_every_pod_has_a_network_policy_and_every_selector_a_pod(values: dict[str, Any]) -> None:
    """Ray's job API, which runs what it is sent, would be open to the whole cluster; or a policy would protect nobody."""
    documents = render(values)
    running = [found for document in documents for found in pods(document)]
    policies = [each["spec"] for each in documents if each["kind"] == "NetworkPolicy"]
    incoming = [each["podSelector"]["matchLabels"] for each in policies if "Ingress" in each["policyTypes"]]
    assert all(any(selects(selector, pod) for selector in incoming) for pod in running)
    budgets = [each["spec"]["selector"]["matchLabels"] for each in documents if each["kind"] == "PodDisruptionBudget"]
    services = [each["spec"]["selector"] for each in documents if each["kind"] == "Service"]
    assert budgets
    for selector in [*incoming, *budgets, *services]:
        assert any(selects(selector, pod) for pod in running), selector


def test_only_kuberay_and_the_pods_themselves_reach_the_job_api() -> None:
    """Whoever reaches port 8265 runs code on the cluster."""
    for policy in (each["spec"] for each in render(RAY) if each["kind"] == "NetworkPolicy"):
        for rule in policy.get("ingress", []):
            if 8265 in {port["port"] for port in rule.get("ports", [{"port": 8265}])}:
                (peer,) = rule["from"]
                operator = peer.get("podSelector") == {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
                assert operator or peer == {"podSelector": policy["podSelector"]}


@pytest.mark.parametrize("values", [SERVER, RAY], ids=["server", "ray"])
def test_pods_have_time_to_drain(values: dict[str, Any]) -> None:
    """Kubernetes would kill a server before the forecast in flight on it is done."""
    documents = render(values)
    if values is RAY:
        (group,) = cluster_of(of_kind(documents, "RayService"))["workerGroupSpecs"]
        (options,) = yaml.safe_load(of_kind(documents, "RayService")["spec"]["serveConfigV2"])["applications"][0]["deployments"]
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > options["graceful_shutdown_timeout_s"]
    else:
        (pod,) = pods(of_kind(documents, "Deployment"))
        assert pod["spec"]["terminationGracePeriodSeconds"] > Settings().drain_s


def test_storage_is_of_the_users_choice() -> None:
    """Checkpoints would go to the cluster's default storage, or vanish with `helm uninstall`."""
    claim = of_kind(render(REMOTE), "PersistentVolumeClaim")
    assert (claim["spec"]["storageClassName"], claim["spec"]["accessModes"]) == ("fast", ["ReadWriteOnce"])
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    theirs = render({"train": {"enabled": True, "storage": {"existingClaim": "shared"}}})
    assert all(each["kind"] != "PersistentVolumeClaim" for each in theirs)
    used = {volume["persistentVolumeClaim"]["claimName"] for pod in pods(cluster_of(of_kind(theirs, "RayJob")))
            for volume in pod["spec"]["volumes"]}  # fmt: skip
    assert used == {"shared"}
