"""What is installed: wheel and sdist."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = (".safetensors", ".md", ".html", ".css", ".js", ".json", "py.typed")
"""Ends of the files that are no code and are needed all the same."""


def tracked(*folders: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


@pytest.mark.slow
def test_wheel_and_sdist_hold_every_file_of_the_packages(tmp_path: Path) -> None:
    """An installation would lack the forecasters' weights, the page or a module, which no test in a checkout notices."""
    packages = tracked("protos", "nowcast_server", "trainer_worker")
    source = tmp_path / "source"
    for name in packages | tracked("pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys, setuptools.build_meta as b; out = sys.argv[1]; b.build_sdist(out); b.build_wheel(out)"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, check=True)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert wheel.name == f"nowcast_train-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as held:
        names = set(held.namelist())
    needed = {name for name in packages if name.endswith((".py", *DATA))}
    assert "nowcast_server/checkpoints/nino-base.safetensors" in needed
    assert needed - names == set()
    with tarfile.open(sdist) as held:
        assert needed - {name.partition("/")[2] for name in held.getnames()} == set()


def test_the_newest_version_is_in_the_changelog() -> None:
    """A release would say nothing of what has changed."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text()
