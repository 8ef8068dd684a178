"""The Kubernetes manifests, without a cluster."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lightkube", reason="lightkube-models is not installed")
sys.path.insert(0, str(Path(__file__).parent))
from commands import parse
from kubernetes_schema import QUANTITY, Invalid, check, check_pod_template

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("base", "gpu", "ray")

# What KubeRay's resource definitions (v1, release 1.4) know of, as far as we use it: key -> None or the keys below.
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
SERVICE = {"serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold", "serveConfigV2", "rayClusterConfig"}
JOB = {"entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"}


@pytest.fixture(scope="module", params=OVERLAYS)
def rendered(request: pytest.FixtureRequest) -> list[Any]:
    """What `kubectl apply --kustomize` would send."""
    return render(FOLDER / request.param)


def render(folder: Path) -> list[Any]:
    """The resources of a kustomization."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def sources(folder: str = "*") -> list[Any]:
    """All resources as written, without those of kustomize itself."""
    paths = [path for path in sorted(FOLDER.glob(f"{folder}/*.yaml")) if path.name != "kustomization.yaml"]
    return [document for path in paths for document in yaml.safe_load_all(path.read_text())]


def pod_templates(document: Any) -> Iterator[Any]:
    """Every pod template, wherever in a resource."""
    if isinstance(document, dict):
        if "containers" in document.get("spec", {}):
            yield document
        for each in document.values():
            yield from pod_templates(each)
    elif isinstance(document, list):
        for each in document:
            yield from pod_templates(each)


def cluster_of(document: Any) -> Any:
    """The Ray cluster of a RayJob or RayService."""
    spec = document["spec"]
    return spec.get("rayClusterConfig") or spec["rayClusterSpec"]


def test_every_kustomization_renders_valid_resources(rendered: list[Any]) -> None:
    """`kubectl apply` would refuse a resource, or a patch would have lost its target."""
    assert len(rendered) >= 3
    for document in rendered:
        assert document["metadata"]["namespace"] == "nowcast"
        if document["apiVersion"] != "ray.io/v1":
            check(document)


def test_resources_as_written_have_no_unknown_fields() -> None:
    """A misspelt field is dropped in silence by a server that does not validate."""
    for document in sources():
        if document["apiVersion"] == "ray.io/v1":
            for template in pod_templates(document):
                check_pod_template(template, document["kind"])
        elif document["kind"] != "Deployment":  # its selector is kustomize's to fill in
            check(document)


@pytest.mark.parametrize(
    ("place", "value"),
    [("replica", 1), ("replicas", "1"), ("template", {"spec": {"containers": [{"image": "x"}]}})],
    ids=["unknown", "type", "missing"],
)
def test_the_check_itself_notices(place: str, value: Any) -> None:
    """The schema's check would pass anything."""
    fine = {"selector": {}, "template": {"spec": {"containers": [{"name": "a"}]}}}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": fine}
    check(deployment)
    with pytest.raises(Invalid):
        check({**deployment, "spec": {**fine, place: value}})


def test_ray_resources_use_fields_that_kuberay_has() -> None:
    """The operator would refuse the resource, or ignore what was meant."""
    known = {"RayService": SERVICE, "RayJob": JOB}
    ray = [document for document in sources("ray") if document["apiVersion"] == "ray.io/v1"]
    assert {document["kind"] for document in ray} == set(known)
    for document in ray:
        assert set(document["spec"]) <= known[document["kind"]]
        cluster = cluster_of(document)
        assert set(cluster) <= CLUSTER
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            assert set(group) <= GROUP
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        for group in cluster["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_ray_versions_are_the_locked_one() -> None:
    """KubeRay starts nodes by the version it is told; another one than the image's would not join."""
    (locked,) = re.findall(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert {cluster_of(each)["rayVersion"] for each in sources("ray") if each["apiVersion"] == "ray.io/v1"} == {locked}


def test_commands_are_what_our_programs_understand() -> None:
    """A pod would crash over an option that does not exist."""
    (deployment,) = (each for each in sources("base") if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    options = parse(["nowcast-server", *container["args"]])
    assert options["token_file"]
    (job,) = (each for each in sources("ray") if each["kind"] == "RayJob")
    assert parse(job["spec"]["entrypoint"])["server"].startswith("http://nowcast-serve-svc:8440")


def test_a_job_that_is_tried_again_goes_on() -> None:
    """`nowcast train` refuses a folder that holds an unfinished run: every retry would fail at once."""
    (job,) = (each for each in sources("ray") if each["kind"] == "RayJob")
    assert job["spec"]["backoffLimit"] > 0
    assert parse(job["spec"]["entrypoint"])["resume"]


def test_memory_of_the_pod_covers_what_the_server_may_promise() -> None:
    """The kernel would kill a server that keeps to its own budget."""
    (deployment,) = (each for each in sources("base") if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    options = parse(["nowcast-server", *container["args"]])
    promised = sum(int(options[name].removesuffix("GiB")) for name in ("memory", "forecast_memory"))
    assert int(container["resources"]["limits"]["memory"].removesuffix("Gi")) >= promised + 2


def test_every_container_is_confined() -> None:
    """A pod would run as root or with capabilities nobody needs, or take memory without a limit."""
    templates = [template for document in sources() for template in pod_templates(document)]
    assert len(templates) == 5
    for template in templates:
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            for amount in (*container["resources"]["requests"].values(), container["resources"]["limits"]["memory"]):
                assert re.match(QUANTITY, amount), amount


def test_names_that_refer_to_each_other_agree(rendered: list[Any]) -> None:
    """A mount without its volume, or a port by a name nobody has: the pod would never start."""
    for template in (found for document in rendered for found in pod_templates(document)):
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
        for container in template["spec"]["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
            ports = {port["name"] for port in container.get("ports", [])}
            probes = [container[probe] for probe in ("startupProbe", "readinessProbe", "livenessProbe") if probe in container]
            assert {probe["httpGet"]["port"] for probe in probes} <= ports
    for service in (each for each in rendered if each["kind"] == "Service"):
        (deployment,) = (each for each in rendered if each["kind"] == "Deployment")
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_the_network_policy_is_about_the_server_alone(rendered: list[Any]) -> None:
    """Trainers and Ray nodes of the namespace would be cut off from everything, or the server from those who call it."""
    for policy in (each for each in rendered if each["kind"] == "NetworkPolicy"):
        (deployment,) = (each for each in rendered if each["kind"] == "Deployment")
        template = deployment["spec"]["template"]
        selected = policy["spec"]["podSelector"]["matchLabels"]
        assert selected["app.kubernetes.io/name"] == "nowcast-server"
        assert selected.items() <= template["metadata"]["labels"].items()
        assert "egress" not in policy["spec"]
        (rule,) = policy["spec"]["ingress"]
        assert {"podSelector": {}} in rule["from"]
        assert {"namespaceSelector": {"matchLabels": {"nowcast.dev/trainers": "true"}}} in rule["from"]
        (port,) = rule["ports"]
        assert port["port"] in {each["containerPort"] for each in template["spec"]["containers"][0]["ports"]}


def test_the_gpu_overlay_asks_for_a_gpu() -> None:
    """The server would run on the CPU of an expensive node."""
    patch = yaml.safe_load(yaml.safe_load((FOLDER / "gpu" / "kustomization.yaml").read_text())["patches"][0]["patch"])
    assert {"op": "add", "path": "/spec/template/spec/containers/0/resources/limits/nvidia.com~1gpu", "value": "1"} in patch


def test_the_gpu_overlay_keeps_its_image_when_base_is_given_a_registry(tmp_path: Path) -> None:
    """A server with a GPU would run the CPU's image, and nothing would say so."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    base = tmp_path / "base" / "kustomization.yaml"
    base.write_text(base.read_text().replace("newName: nowcast-server", "newName: registry.example.com:5000/team/nowcast"))
    images = {}
    for overlay in ("base", "gpu"):
        (deployment,) = (each for each in render(tmp_path / overlay) if each["kind"] == "Deployment")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        images[overlay] = container["image"]
    assert images == {"base": "registry.example.com:5000/team/nowcast:cpu", "gpu": "nowcast-server:gpu"}
