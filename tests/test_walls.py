"""The walls between the packages: who may import whom, and that no image needs what it does not carry."""

import re
import subprocess
import sys
from collections.abc import Iterator
from modulefinder import ModuleFinder
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("trainer_worker", "nowcast_server")


def imports(folder: str, *, but: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every (file, imported module or name in it) below a folder, leaving out the files or folders named in `but`."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        if where.startswith(but):
            continue
        for kind, found in _operations(compile(path.read_bytes(), path, "exec")):
            if kind == "absolute_import":
                names, module = found
                yield from ((where, f"{module}.{name}" if names else module) for name in names or ("",))


def _operations(code: CodeType) -> Iterator[tuple[str, Any]]:
    """Imports and stores of a module, functions and classes in it included. Not by `ast`: a garbage collection within `ast.parse`
    that has something parsed as well, such as a module that pytest rewrites, ends it in a SystemError (Python 3.11, gh-106905).
    """
    yield from ModuleFinder().scan_opcodes(code)
    for inner in (each for each in code.co_consts if isinstance(each, CodeType)):
        yield from _operations(inner)


@pytest.mark.parametrize(
    ("folder", "but", "banned"),
    [
        ("protos", (), {"torch", "numpy", "ray", "fastapi", "nowcast_server", "trainer_worker"}),
        ("nowcast_server", ("nowcast_server/serve",), {"ray"}),
        ("nowcast_server", (), {"trainer_worker"}),
        ("trainer_worker", ("trainer_worker/metatrain",), {"fastapi", "starlette", "uvicorn", "torch_geometric"}),
        ("trainer_worker", ("trainer_worker/endpoints/embedded.py", "trainer_worker/metatrain"), {"nowcast_server"}),
        (".", (".venv", "build"), {"pickle", "cloudpickle", "dill"}),
    ],
    ids=["protos", "server-ray", "server-worker", "worker", "embedded-and-metatrain-only", "no-pickle"],
)
def test_packages_import_only_what_they_may(folder: str, but: tuple[str, ...], banned: set[str]) -> None:
    """A server image would need ray, a worker image FastAPI; or bytes from the network would meet pickle."""
    assert [(where, name) for where, name in imports(folder, but=but) if name.split(".")[0] in banned] == []


ROOMS = {
    "trainer_worker/adapters": set(),
    "trainer_worker/weights": set(),
    "trainer_worker/wiring": set(),
    "trainer_worker/endpoints": set(),
    "trainer_worker/tasks": set(),
    "trainer_worker/training": {"endpoints", "tasks"},
    "trainer_worker/comparison": {"endpoints", "tasks", "training"},
    "trainer_worker/cluster": {"training"},
    "nowcast_server/nino": set(),
    "nowcast_server/forecasters": {"nino"},
    "nowcast_server/jobs": {"forecasters"},
    "nowcast_server/trajectories": {"jobs"},
    "nowcast_server/selftest": {"forecasters", "jobs", "nino"},
    "trainer_worker/metatrain": {"tasks", "wiring"},
    "nowcast_server/web": {"jobs", "nino"},
    "nowcast_server/serve": {"web"},
}
"""Folders, and what they import of the folders beside them: no circles."""


def test_every_folder_has_its_walls() -> None:
    folders = {path.parent.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).glob("*/__init__.py")}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_folders_import_only_what_they_may(room: str) -> None:
    """Whoever reads one folder need not read those above it."""
    package, name = room.split("/")
    beside = {other.split("/")[1] for other in ROOMS if other.startswith(package)} - {name}
    found = {imported.split(".")[1] for _, imported in imports(room) if imported.startswith(f"{package}.")}
    assert found & beside == ROOMS[room]


_EXTRAS = ["fastapi", "pydantic_settings", "prometheus_client", "ray", "matplotlib", "torch_geometric", "transformers", "lightning"]
"""What the extras `server`, `ray`, `metatrain` and those of the adapters bring."""


ON_WINDOWS = """
import builtins
find = builtins.__import__

def without_posix(name, globals=None, *rest):
    ours = (globals or {}).get("__name__", "").split(".")[0] in ("protos", "nowcast_server", "trainer_worker")
    if ours and name in ("resource", "fcntl", "pwd", "grp", "termios"):
        raise ModuleNotFoundError(name)
    return find(name, globals, *rest)

builtins.__import__ = without_posix
import trainer_worker, trainer_worker.cli, trainer_worker.nowcast, trainer_worker.endpoints.embedded
"""


def without(absent: list[str], modules: str) -> str:
    return f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import {modules}"


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(without(["ray", "httpx2", "stamina", "matplotlib"], "nowcast_server.app"), id="server"),
        pytest.param(without([*_EXTRAS, "safetensors"], "trainer_worker.nowcast, trainer_worker.endpoints.client"), id="worker"),
        pytest.param(without(_EXTRAS, "trainer_worker.endpoints.embedded, nowcast_server.forecasters.learned"), id="embedded"),
        pytest.param(without(["fastapi", "torch_geometric"], "trainer_worker.cli"), id="worker's commands"),
        pytest.param(without(["torch", "ray"], "protos.messages"), id="protos"),
        pytest.param(without(["torch", "ray", "matplotlib", "torch_geometric"], "nowcast_server.cli"), id="the server's help"),
        pytest.param(ON_WINDOWS, id="the worker on Windows"),
    ],
)
def test_a_package_imports_where_others_libraries_are_absent(code: str) -> None:
    """An image built with one extra, or a notebook on Windows, would fail at its first import; or a help text take seconds."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_map_of_the_code_is_of_this_code() -> None:
    """docs/code.md: a file it names is not there any more, or a folder is not on it."""
    text = (ROOT / "docs/code.md").read_text()
    named = set(re.findall(r"`([\w/]+(?:\.py|\.md|/))`", text))
    places = [ROOT, *(ROOT / package for package in ("protos", *PACKAGES)), *(ROOT / room for room in ROOMS)]
    assert {name for name in named if not any((place / name).exists() for place in places)} == set()
    assert {room for room in ROOMS if room.split("/")[1] + "/" not in named} == set()
