"""What a submission sends to the cluster: a folder, a command line, an environment."""

import shlex
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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


@contextmanager
def prepare(
    what: Path,
    *,
    find_server: Callable[[str], str],
    server: str | None,
    name: str | None,
    arguments: Sequence[str] = (),
    workers: Sequence[str] | None = None,
    storage: str | None = None,
    working_dir: Path | None = None,
    pip: Sequence[str] = (),
    variables: Mapping[str, str],
    token: str | None,
) -> Iterator[dict[str, Any]]:
    """What Ray's `submit_job` takes, after everything was checked that can be checked from here.

    `what` is a configuration or a script, `workers` are the options of `cluster/script.py` that start a script's workers (None if
    it starts them itself), and `find_server` gives the URL of a server named `serve:NAME`. Otherwise see `nowcast submit --help`.

    Raises:
        CommandFailed: something does not work; the message says what to do.
    """
    submission_id = name or f"{plain_name(what.stem, most=40)}-{uuid.uuid4().hex[:8]}"
    configured = what.suffix == ".toml"
    nowcasts = server is not None or not configured or "nowcast" in _tables(what)
    url = _server_url(server or DEFAULT_SERVER, find_server) if nowcasts else None
    # what `Nowcast` looks at when its arguments leave it open
    given = {"NOWCAST_SERVER": url, "NOWCAST_TOKEN": token, "NOWCAST_JOB": submission_id, "PYTHONUNBUFFERED": "1", **variables}
    job: dict[str, Any] = {
        "submission_id": submission_id,
        "runtime_env": {"excludes": EXCLUDES, "env_vars": {key: value for key, value in given.items() if value is not None}},
        "metadata": {"nowcast.version": version(DISTRIBUTION), **({"nowcast.server": url} if url else {})},
    }
    if pip:
        job["runtime_env"]["pip"] = list(pip)
    with tempfile.TemporaryDirectory(prefix="nowcast-") as empty:
        if configured:
            overrides = config_overrides(name=submission_id, server=(url or EMBEDDED) if nowcasts else None, storage=storage)
            _check_config(what, overrides)
            folder = Path(empty)  # nothing else is uploaded; the tasks come with the package
            (folder / what.name).write_bytes(what.read_bytes())
            job["entrypoint"] = config_command(what, overrides, resume=storage is not None)
        else:
            folder, script = locate(what, working_dir)
            at = ["--storage", storage] if storage else []
            start = [] if workers is None else ["-m", "trainer_worker.cluster.script", "--name", submission_id, *workers, *at]
            job["entrypoint"] = shlex.join(["python", *start, script.as_posix(), *arguments])
        job["runtime_env"]["working_dir"] = str(folder)
        yield job


def _server_url(server: str, find_server: Callable[[str], str]) -> str | None:
    if server == EMBEDDED:
        return None
    if server.startswith(BY_NAME):
        return find_server(server)
    if not server.startswith(("http://", "https://")):
        raise CommandFailed(f"--server {server!r}: give a URL, serve:NAME, or embedded")
    return server


def parse_workers(text: str) -> tuple[int, int]:
    """`4`, or `2:8` for an elastic number. Raises `ValueError`: it is neither."""
    first, _, second = text.partition(":")
    least, most = int(first), int(second or first)
    if not 1 <= least <= most:
        raise ValueError
    return least, most


def locate(script: Path, working_dir: Path | None) -> tuple[Path, Path]:
    """The folder to upload and the script's place in it. Raises `CommandFailed`: the script lies outside."""
    folder = (working_dir or script.parent).resolve()
    if not script.resolve().is_relative_to(folder):
        raise CommandFailed(f"{script} is not in the working directory {folder}: give one that holds it with --working-dir")
    return folder, script.resolve().relative_to(folder)


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
    return shlex.join(["python", "-m", "trainer_worker", "train", config.name, *options, *(["--resume"] if resume else [])])


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
