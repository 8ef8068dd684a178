"""docker-compose.yml against the compose specification, and against what it talks about."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from commands import parse

ROOT = Path(__file__).resolve().parents[2]
ENTRYPOINTS = {"server.Dockerfile": "nowcast-server", "worker.Dockerfile": "ray"}


@pytest.fixture(scope="module")
def compose(documents: Callable[[str], list[Any]]) -> Any:
    """The whole file, merge keys resolved."""
    return documents("docker-compose.yml")[0]


@pytest.fixture(scope="module")
def services(compose: Any) -> Any:
    """By name."""
    return compose["services"]


def test_compose_file_follows_the_specification(compose: Any) -> None:
    """`docker compose` would refuse the file: an unknown key, a wrong type, a network or volume nobody defines."""
    specification = pytest.importorskip("compose_spec").compose_spec
    specification.PyCompose.from_dict(compose).validate()


def test_the_check_itself_notices(compose: Any) -> None:
    """The specification's check would pass anything."""
    specification = pytest.importorskip("compose_spec").compose_spec
    for wrong in ({"imagee": "x"}, {"image": "x", "depends_on": {"y": {"condition": "healthy"}}}):
        with pytest.raises(ValueError, match=r".+"):
            specification.PyCompose.from_dict({"services": {"x": wrong}}).validate()


def test_own_services_are_built_from_files_that_exist(services: Any) -> None:
    """`up --build` would stop at a build context or Dockerfile that is not there."""
    built = {name: each["build"] for name, each in services.items() if "build" in each}
    assert {"server", "server-gpu", "ray-head", "ray-worker", "ray-worker-gpu"} == set(built)
    for build in built.values():
        dockerfile = ROOT / build["context"] / build["dockerfile"]
        declared = re.findall(r"^ARG (\w+)", dockerfile.read_text(), re.MULTILINE)
        assert set(build["args"]) <= set(declared)


def test_commands_are_what_the_images_understand(services: Any) -> None:
    """A container would end at once, over an option that does not exist."""
    for service in services.values():
        if "build" in service:
            parse([ENTRYPOINTS[Path(service["build"]["dockerfile"]).name], *service["command"]])


def test_the_command_in_the_header_is_valid() -> None:
    """The first thing a reader tries would fail."""
    (line,) = re.findall(r"exec ray-head (nowcast .+)$", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    assert parse(line)["server"] == "http://server:8440"


def test_both_profiles_are_whole(services: Any) -> None:
    """`--profile gpu` would start without a server, or a service would wait for one of the other profile."""
    for profile in ("cpu", "gpu"):
        active = {name: each for name, each in services.items() if profile in each["profiles"]}
        assert {"ray-head", "prometheus", "grafana"} < set(active)
        assert sum(name.startswith("server") for name in active) == 1
        assert sum(name.startswith("ray-worker") for name in active) == 1
        for each in active.values():
            needs = each.get("depends_on", {})
            assert all(name in active or not needs[name].get("required", True) for name in needs)


def test_the_server_answers_to_one_name_in_both_profiles(services: Any) -> None:
    """Workers and Prometheus call http://server:8440, whichever it is."""
    assert services["server-gpu"]["networks"]["default"]["aliases"] == ["server"]
    devices = services["server-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]


def test_nothing_is_published_beyond_loopback(services: Any) -> None:
    """A server without tokens would be open to the network the machine is in."""
    ports = [port for each in services.values() for port in each.get("ports", [])]
    assert len(ports) >= 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_mounted_files_exist_and_volumes_belong_to_the_images_user(compose: Any) -> None:
    """A mount of a missing path creates an empty root-owned folder; a fresh volume takes its owner from the image's folder."""
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source, target = volume.split(":")[:2]
            if source.startswith("./"):
                assert (ROOT / source).is_dir(), source
            else:
                assert source in compose["volumes"]
                if "build" in service:
                    made = (ROOT / service["build"]["dockerfile"]).read_text()
                    assert re.search(rf"install --directory --owner nowcast .*{target}\b", made), (name, target)
