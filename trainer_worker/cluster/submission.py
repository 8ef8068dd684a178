"""What a submission sends to the cluster: a folder, a command line, an environment."""

import shlex
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from protos import DISTRIBUTION
from trainer_worker.errors import CommandFailed
from trainer_worker.names import plain_name

EMBEDDED: Final = "embedded"
BY_NAME: Final = "serve:"
DEFAULT_SERVER: Final = f"{BY_NAME}nowcast"
EXCLUDES: Final = [
    *(".git", ".venv", "venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules", "runs", "wandb")
]
"""Left at home: large, and of no use there."""
NOT_UPLOADED: Final = {
    "task.data": "leave it out, and the data set is fetched there; or give the whole path of a folder that all nodes share",
    "nowcast.forecaster": "start a server with it, and give that with --server; or the whole path of a file that all nodes share",
}
"""Paths of a configuration, and what stands for those that mean nothing on another machine."""


@dataclass(frozen=True)
class Workers:
    """The data-parallel processes that run a script: `most` if the cluster has room, no fewer than `least`."""

    least: int = 1
    most: int = 1
    gpus: float = 0
    cpus: float = 1
    max_failures: int = 3


@dataclass(frozen=True)
class Submission:
    """One job: a command line, run in a folder that is uploaded."""

    id: str
    entrypoint: str
    working_dir: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    pip: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def runtime_env(self) -> dict[str, Any]:
        """As Ray takes it."""
        env = {"working_dir": str(self.working_dir), "excludes": EXCLUDES, "env_vars": dict(self.environment)}
        return {**env, "pip": list(self.pip)} if self.pip else env


@contextmanager
def prepare(
    what: Path,
    arguments: list[str],
    *,
    find_server: Callable[[str], str],
    server: str | None,
    name: str | None,
    workers: Workers | None,
    storage: str | None,
    working_dir: Path | None,
    pip: tuple[str, ...],
    variables: Mapping[str, str],
    token: str | None,
) -> Iterator[Submission]:
    """Check everything that can be checked from here, before anything is sent. Arguments are the command's, see `nowcast submit
    --help`, but `find_server`, which gives the URL of a server named `serve:NAME`; `workers` is None if a script starts its own.

    Raises:
        CommandFailed: something does not work; the message says what to do.
    """
    submission_id = name or new_id(what)
    nowcasts = server is not None or what.suffix != ".toml" or "nowcast" in _tables(what)
    url = _server_url(server or DEFAULT_SERVER, find_server) if nowcasts else None
    given = environment(submission_id, server=url, token=token, extra=variables)
    metadata = {"nowcast.version": version(DISTRIBUTION), **({"nowcast.server": url} if url else {})}
    if what.suffix == ".toml":
        forecasts = (url or EMBEDDED) if nowcasts else None
        overrides = config_overrides(name=submission_id, server=forecasts, storage=storage)
        _check_config(what, overrides)
        with folder_of(what) as folder:
            command = config_command(what, overrides, resume=storage is not None)
            yield Submission(submission_id, command, folder, given, pip, metadata)
    else:
        folder, script = locate(what, working_dir)
        command = script_command(script, arguments, name=submission_id, workers=workers, storage=storage)
        yield Submission(submission_id, command, folder, given, pip, metadata)


def _server_url(server: str, find_server: Callable[[str], str]) -> str | None:
    if server == EMBEDDED:
        return None
    if server.startswith(BY_NAME):
        return find_server(server)
    if not server.startswith(("http://", "https://")):
        raise CommandFailed(f"--server {server!r}: give a URL, serve:NAME, or embedded")
    return server


def parse_workers(text: str) -> tuple[int, int]:
    """`4`, or `2:8` for an elastic number.

    Raises:
        ValueError: it is neither.
    """
    first, _, second = text.partition(":")
    least, most = int(first), int(second or first)
    if not 1 <= least <= most:
        raise ValueError
    return least, most


def new_id(what: Path) -> str:
    """A new name that says what runs."""
    return f"{plain_name(what.stem, most=40)}-{uuid.uuid4().hex[:8]}"


def environment(submission_id: str, *, server: str | None, token: str | None, extra: Mapping[str, str]) -> dict[str, str]:
    """What `Nowcast` looks at when its arguments leave it open: NOWCAST_SERVER, NOWCAST_TOKEN, NOWCAST_JOB; see also `send`."""
    given = {"NOWCAST_SERVER": server, "NOWCAST_TOKEN": token, "NOWCAST_JOB": submission_id, "PYTHONUNBUFFERED": "1"}
    return {**{name: value for name, value in given.items() if value is not None}, **extra}


def script_command(script: Path, arguments: list[str], *, name: str, workers: Workers | None, storage: str | None = None) -> str:
    """The command line that runs a script, by its place in the uploaded folder: once as it is, or in each of its workers."""
    if workers is None:
        return shlex.join(["python", script.as_posix(), *arguments])
    options = ["--name", name, "--workers", f"{workers.least}:{workers.most}", "--max-failures", str(workers.max_failures)]
    options += ["--cpus", f"{workers.cpus:g}", "--gpus", f"{workers.gpus:g}"]
    options += ["--storage", storage] if storage else []
    return shlex.join(["python", "-m", "trainer_worker.cluster.script", *options, script.as_posix(), *arguments])


def locate(script: Path, working_dir: Path | None) -> tuple[Path, Path]:
    """The folder to upload and the script's place in it.

    Raises:
        CommandFailed: the script lies outside.
    """
    folder = (working_dir or script.parent).resolve()
    if not script.resolve().is_relative_to(folder):
        raise CommandFailed(f"{script} is not in the working directory {folder}: give one that holds it with --working-dir")
    return folder, script.resolve().relative_to(folder)


@contextmanager
def folder_of(config: Path) -> Iterator[Path]:
    """A folder that holds a configuration and nothing else; the tasks come with the package."""
    with tempfile.TemporaryDirectory(prefix="nowcast-") as folder:
        (Path(folder) / config.name).write_bytes(config.read_bytes())
        yield Path(folder)


def config_overrides(*, name: str, server: str | None, storage: str | None) -> dict[str, str]:
    """What is different on the cluster, by `table.key`; server is None if the configuration makes no nowcasts."""
    given = {"workers.address": "auto"} | ({"nowcast.server": server} if server else {})
    if storage and "://" in storage:  # as below; but the run itself needs a folder of files
        given |= {"output.folder": f"runs/{name}", "output.storage": f"{storage}/{name}"}
    elif storage:
        given["output.folder"] = f"{storage}/{name}"
    return given


def config_command(config: Path, overrides: Mapping[str, str], *, resume: bool) -> str:
    """The command line that trains a configuration on the cluster it runs on; sent again, it goes on from its storage."""
    from trainer_worker.training.config import OPTIONS

    options = [word for name, place in OPTIONS.items() if place in overrides for word in (f"--{name}", overrides[place])]
    options += ["--resume"] if resume else []
    return shlex.join(["python", "-m", "trainer_worker", "train", config.name, *options])


def _tables(config: Path) -> dict[str, Any]:
    from trainer_worker.training.config import read_tables

    return read_tables(config)


def _check_config(path: Path, overrides: Mapping[str, str]) -> None:
    """Refuse here what the command line on the cluster would refuse, or not find."""
    from trainer_worker.training.config import load_config

    nowcast = load_config(path, overrides=dict(overrides)).nowcast
    file = nowcast is not None and nowcast.name != nowcast.forecaster
    for place, instead in NOT_UPLOADED.items():
        table, key = place.split(".")
        named = _tables(path).get(table, {}).get(key)
        if named is not None and (key == "data" or file) and not Path(named).is_absolute():
            raise CommandFailed(f"{path}: [{table}] {key}: {named} is on this machine, and is not uploaded: {instead}")
