"""What a submission sends to the cluster: a folder, a command line, an environment."""

import shlex
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from trainer_worker.cluster.errors import ClusterError
from trainer_worker.names import plain_name

EXCLUDES: Final = (
    ".git",
    ".venv",
    "venv",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "node_modules",
    "runs",
    "wandb",
)
"""Left at home: large, and of no use there."""


@dataclass(frozen=True)
class Workers:
    """How a script is started.

    Args:
        least: number of data-parallel processes; the run goes on with so few if nodes are lost.
        most: number of them if the cluster has room.
        gpus: of each.
        cpus: of each.
        max_failures: restarts from the latest checkpoint before giving up; -1 without end.
        storage: where checkpoints and results go: a path all nodes share, or any URI that Ray Train writes to (s3://, gs://, …).
    """

    least: int = 1
    most: int = 1
    gpus: float = 0
    cpus: float = 1
    max_failures: int = 3
    storage: str | None = None


@dataclass(frozen=True)
class Submission:
    """One job for the cluster.

    Args:
        id: its name there.
        entrypoint: the command line.
        working_dir: uploaded, and the command's working directory.
        environment: variables of the command and of all its workers.
        pip: packages to install for it.
        metadata: shown by Ray with the job.
    """

    id: str
    entrypoint: str
    working_dir: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    pip: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def runtime_env(self) -> dict[str, Any]:
        """As Ray takes it."""
        env: dict[str, Any] = {
            "working_dir": str(self.working_dir),
            "excludes": list(EXCLUDES),
            "env_vars": dict(self.environment),
        }
        return {**env, "pip": list(self.pip)} if self.pip else env


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
    """What `Nowcast` looks at when its arguments leave it open: NOWCAST_SERVER, NOWCAST_TOKEN, NOWCAST_JOB."""
    given = {"NOWCAST_SERVER": server, "NOWCAST_TOKEN": token, "NOWCAST_JOB": submission_id, "PYTHONUNBUFFERED": "1"}
    return {**{name: value for name, value in given.items() if value is not None}, **extra}


def script_command(script: Path, arguments: list[str], *, name: str, workers: Workers | None) -> str:
    """The command line that runs a script: once as it is, or in each of its workers.

    Args:
        script: relative to the working directory.
        arguments: the script's own.
        name: of the run.
        workers: None if the script starts its workers itself.
    """
    if workers is None:
        return shlex.join(["python", script.as_posix(), *arguments])
    options = ["--name", name, "--workers", f"{workers.least}:{workers.most}", "--max-failures", str(workers.max_failures)]
    options += ["--cpus", f"{workers.cpus:g}", "--gpus", f"{workers.gpus:g}"]
    options += ["--storage", workers.storage] if workers.storage else []
    return shlex.join(["python", "-m", "trainer_worker.cluster.script", *options, script.as_posix(), *arguments])


def locate(script: Path, working_dir: Path | None) -> tuple[Path, Path]:
    """The folder to upload and the script's place in it.

    Raises:
        ClusterError: there is no such script, or it lies outside.
    """
    if not script.is_file():
        raise ClusterError(f"there is no file {script}")
    folder = (working_dir or script.parent).resolve()
    if not script.resolve().is_relative_to(folder):
        raise ClusterError(f"{script} is not in the working directory {folder}: give one that holds it with --working-dir")
    return folder, script.resolve().relative_to(folder)


@contextmanager
def folder_of(config: Path) -> Iterator[Path]:
    """A folder that holds a configuration and nothing else; the tasks come with the package."""
    with tempfile.TemporaryDirectory(prefix="nowcast-") as folder:
        (Path(folder) / config.name).write_bytes(config.read_bytes())
        yield Path(folder)
