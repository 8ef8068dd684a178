"""docker-compose.yml against the compose specification, and against what it talks about."""

import re
from typing import Any

import pytest
from commands import ROOT, document, parse


@pytest.fixture(scope="module")
def compose() -> Any:
    """The whole file, merge keys resolved."""
    return document("docker-compose.yml")


def test_compose_file_follows_the_specification(compose: Any) -> None:
    """`docker compose` would refuse the file: an unknown key, a wrong type, a network or volume nobody defines."""
    pytest.importorskip("compose_spec").compose_spec.PyCompose.from_dict(compose).validate()


def test_commands_are_what_the_images_understand(compose: Any) -> None:
    """A container would end at once, over an option that does not exist."""
    for service in compose["services"].values():
        if service["image"].startswith("nowcast-worker"):
            parse(["ray", *service["command"]])
    (line,) = re.findall(r"exec ray-head (nowcast .+)$", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    assert parse(line)["server"] == "http://server:8440"


def test_variables_are_settings_of_the_server(compose: Any) -> None:
    """A misspelt NOWCAST_ variable is ignored: the server would run with its default and nobody would know."""
    from nowcast_server.settings import Settings

    for name in ("server", "server-gpu"):
        known = {f"NOWCAST_{field.upper()}" for field in Settings.model_fields}
        assert set(compose["services"][name]["environment"]) <= known


def test_nobody_gets_in_from_outside(compose: Any) -> None:
    """A server without tokens would be open to the network the machine is in; or admin:admin work at Grafana, page or API."""
    ports = [port for each in compose["services"].values() for port in each.get("ports", [])]
    assert len(ports) >= 6
    assert all(port.startswith("127.0.0.1:") for port in ports)
    environment = compose["services"]["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_volumes_can_be_written_by_the_images_user(compose: Any) -> None:
    """A volume takes its owner from the image's folder, and would belong to root without one. A missing mount becomes a folder."""
    (made,) = re.findall(r"install --directory --owner nowcast (.+?) \\", (ROOT / "deploy/Dockerfile").read_text())
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source, target = volume.split(":")[:2]
            assert (ROOT / source).is_dir() if source.startswith("./") else source in compose["volumes"]
            assert target in made.split() or not service["image"].startswith("nowcast")
