"""Submit a configuration or a script as a job on the cluster."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

import stamina
from ray.job_submission import JobSubmissionClient

from protos import DISTRIBUTION
from trainer_worker.cluster.connection import cluster_errors, connect, serve_details
from trainer_worker.cluster.errors import ClusterError
from trainer_worker.cluster.finding import BY_NAME, server_url
from trainer_worker.cluster.packaging import Submission, Workers, environment, folder_of, locate, new_id, script_command

EMBEDDED: Final = "embedded"
DEFAULT_SERVER: Final = f"{BY_NAME}nowcast"
READY_S: Final = 60.0
NOT_UPLOADED: Final = {
    "task.data": "leave it out, and the data set is fetched there; or give the whole path of a folder that all nodes share",
    "nowcast.checkpoint": "start a server with it, and give that with --server; or the whole path of a file that all nodes share",
}
"""Paths of a configuration, and what stands for those that mean nothing on another machine."""


@contextmanager
def prepare(
    what: Path,
    arguments: list[str],
    *,
    address: str | None,
    server: str | None,
    name: str | None,
    workers: Workers | None,
    storage: str | None,
    working_dir: Path | None,
    pip: tuple[str, ...],
    variables: Mapping[str, str],
    token: str | None,
) -> Iterator[tuple[JobSubmissionClient, Submission]]:
    """Check everything that can be checked from here, before anything is sent.

    Args:
        what: a configuration (.toml) or a script.
        arguments: of the script.
        address: of the cluster.
        server: URL, `serve:NAME`, or `embedded` for forecasts in the workers themselves; None for the cluster's `nowcast`, unless
            it is a configuration without nowcasts.
        name: of the job; None makes one.
        workers: None if the script starts its own.
        storage: for checkpoints, and results of a configuration.
        working_dir: to upload; None for the script's folder.
        pip: packages.
        variables: for the environment.
        token: for the server.

    Raises:
        ClusterError: something does not work; the message says what to do.
    """
    if not what.is_file():
        raise ClusterError(f"there is no file {what}")
    submission_id = name or new_id(what)
    nowcasts = server is not None or what.suffix != ".toml" or _has_nowcasts(what)
    client = connect(address)
    url = _server(server or DEFAULT_SERVER, client) if nowcasts else None
    given = environment(submission_id, server=url, token=token, extra=variables)
    metadata = {"nowcast.version": version(DISTRIBUTION), **({"nowcast.server": url} if url else {})}
    if what.suffix == ".toml":
        forecasts = (url or EMBEDDED) if nowcasts else None
        overrides = config_overrides(name=submission_id, server=forecasts, storage=storage)
        _check_config(what, overrides)
        with folder_of(what) as folder:
            command = config_command(what, overrides, resume=storage is not None)
            yield client, Submission(submission_id, command, folder, given, pip, metadata)
    else:
        folder, script = locate(what, working_dir)
        command = script_command(script, arguments, name=submission_id, workers=workers)
        yield client, Submission(submission_id, command, folder, given, pip, metadata)


def send(client: JobSubmissionClient, submission: Submission) -> None:
    """Upload and start; a cluster that has only just come up gets `READY_S` to be ready for jobs.

    Raises:
        ClusterError: the cluster refuses.
    """
    with cluster_errors():
        for attempt in stamina.retry_context(on=_not_yet, attempts=None, timeout=READY_S, wait_initial=1.0, wait_max=5.0):
            with attempt:
                _submit(client, submission)


def _not_yet(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "try again later" in str(error)


def _submit(client: JobSubmissionClient, submission: Submission) -> None:
    client.submit_job(
        entrypoint=submission.entrypoint,
        submission_id=submission.id,
        runtime_env=submission.runtime_env,
        metadata=dict(submission.metadata),
    )


def config_overrides(*, name: str, server: str | None, storage: str | None) -> dict[str, str]:
    """What is different on the cluster, by `table.key`; server is None if the configuration makes no nowcasts."""
    given = {"workers.address": "auto"} | ({"nowcast.server": server} if server else {})
    if storage and "://" in storage:  # as below; but the run itself needs a folder of files
        place = f"{storage}/{name}"
        given |= {"output.folder": f"runs/{name}", "output.checkpoints": f"{place}/checkpoints", "output.copies": place}
    elif storage:
        given["output.folder"] = f"{storage}/{name}"
    return given


def config_command(config: Path, overrides: Mapping[str, str], *, resume: bool) -> str:
    """The command line that trains a configuration on the cluster it runs on; sent again, it goes on from its storage."""
    import shlex

    from trainer_worker.cli import PLACES

    options = [word for name, place in PLACES.items() if place in overrides for word in (f"--{name}", overrides[place])]
    options += ["--resume"] if resume else []
    return shlex.join(["python", "-m", "trainer_worker", "train", config.name, *options])


def _has_nowcasts(config: Path) -> bool:
    from trainer_worker.training.config import ConfigError, read_tables

    try:
        return "nowcast" in read_tables(config)
    except ConfigError as error:
        raise ClusterError(str(error)) from error


def _check_config(path: Path, overrides: Mapping[str, str]) -> None:
    """Refuse here what the command line on the cluster would refuse, or not find."""
    from trainer_worker.training.config import ConfigError, load_config, read_tables

    try:
        load_config(path, overrides=dict(overrides))
    except ConfigError as error:
        raise ClusterError(str(error)) from error
    tables = read_tables(path)
    for place, instead in NOT_UPLOADED.items():
        table, key = place.split(".")
        named = tables.get(table, {}).get(key)
        if named is not None and not Path(named).is_absolute():
            raise ClusterError(f"{path}: [{table}] {key}: {named} is on this machine, and is not uploaded: {instead}")


def _server(server: str, client: JobSubmissionClient) -> str | None:
    if server == EMBEDDED:
        return None
    if server.startswith(BY_NAME):
        return server_url(server, serve_details(client))
    if not server.startswith(("http://", "https://")):
        raise ClusterError(f"--server {server!r}: give a URL, serve:NAME, or embedded")
    return server
