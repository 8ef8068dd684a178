"""What a submission sends to the cluster: a folder, a command line, an environment."""

import shlex
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from protos import DISTRIBUTION
from trainer_worker.errors import CommandFailed
from trainer_worker.names import plain_name

EMBEDDED: Final = "embedded"
BY_NAME: Final = "serve:"
EXCLUDES: Final = [
    *(".git", ".venv", "venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules", "runs", "wandb")
]
"""Left at home: large, and of no use there."""


def prepare(
    script: Path,
    arguments: Sequence[str],
    *,
    find_server: Callable[[str], str],
    server: str,
    name: str | None,
    workers: Sequence[str] | None,
    working_dir: Path | None,
    pip: Sequence[str],
    variables: Mapping[str, str],
    token: str | None,
) -> dict[str, Any]:
    """What Ray's `submit_job` takes, after everything was checked that can be checked from here.

    `workers` are the options of `cluster/script.py` that start the script's workers, None if it starts them itself; `find_server`
    gives the URL of a server named `serve:NAME`. Otherwise see `nowcast submit --help`.

    Raises:
        CommandFailed: something does not work; the message says what to do.
    """
    folder = (working_dir or script.parent).resolve()
    if not script.resolve().is_relative_to(folder):
        raise CommandFailed(f"{script} is not in the working directory {folder}: give one that holds it with --working-dir")
    submission_id = name or f"{plain_name(script.stem, most=40)}-{uuid.uuid4().hex[:8]}"
    url = _server_url(server, find_server)
    # what `Nowcast` looks at when its arguments leave it open
    given = {"NOWCAST_SERVER": url, "NOWCAST_TOKEN": token, "NOWCAST_JOB": submission_id, "PYTHONUNBUFFERED": "1", **variables}
    environment = {key: value for key, value in given.items() if value is not None}
    start = [] if workers is None else ["-m", "trainer_worker.cluster.script", "--name", submission_id, *workers]
    return {
        "submission_id": submission_id,
        "entrypoint": shlex.join(["python", *start, script.resolve().relative_to(folder).as_posix(), *arguments]),
        "runtime_env": {
            "working_dir": str(folder),
            "excludes": EXCLUDES,
            "env_vars": environment,
            **({"pip": list(pip)} if pip else {}),
        },
        "metadata": {"nowcast.version": version(DISTRIBUTION), **({"nowcast.server": url} if url else {})},
    }


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
