"""From a configuration or a script to a job on the cluster."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

import stamina
from ray.job_submission import JobSubmissionClient

from trainer_worker.cluster.connection import cluster_errors, connect, serve_details
from trainer_worker.cluster.errors import ClusterError
from trainer_worker.cluster.finding import BY_NAME, server_url
from trainer_worker.cluster.following import MARK, SERVER_KEY
from trainer_worker.cluster.packaging import Submission, Workers, environment, folder_of, locate, new_id, script_command

NO_SERVER: Final = ("embedded", "none")
READY_S: Final = 60.0


@contextmanager
def prepare(
    what: Path,
    arguments: list[str],
    *,
    address: str | None,
    server: str,
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
        server: URL, `serve:NAME`, or `none` for forecasts in the workers themselves.
        name: of the job; None makes one.
        workers: None if the script starts its own.
        storage: for checkpoints, and results of a configuration.
        working_dir: to upload; None for the script's folder.
        pip: packages.
        variables: for the environment.
        token: for the server.

    Raises:
        ClusterError: naming what does not work, and the way out.
    """
    if not what.is_file():
        raise ClusterError(f"there is no file {what}")
    submission_id = name or new_id(what)
    if what.suffix == ".toml":
        _check_config(what)
    client = connect(address)
    url = _server(server, client)
    given = environment(submission_id, server=url, token=token, extra=variables)
    metadata = {MARK: version("nowcast"), **({SERVER_KEY: url} if url else {})}
    if what.suffix == ".toml":
        with folder_of(what) as folder:
            command = config_command(what, name=submission_id, server=url, storage=storage)
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


def config_command(config: Path, *, name: str, server: str | None, storage: str | None) -> str:
    """The command line that trains a configuration on the cluster it runs on; sent again, it goes on from its storage."""
    import shlex

    options = ["--address", "auto", "--server", server or "embedded"]
    if storage and "://" in storage:  # as below; but the run itself needs a folder of files
        options += ["--out", f"runs/{name}", "--checkpoints", f"{storage}/{name}/checkpoints", "--copies", f"{storage}/{name}"]
    elif storage:
        options += ["--out", f"{storage}/{name}"]
    options += ["--resume"] if storage else []
    return shlex.join(["python", "-m", "trainer_worker", "train", config.name, *options])


def _check_config(path: Path) -> None:
    from trainer_worker.training.config import ConfigError, load_config

    try:
        load_config(path, overrides={"workers.address": "auto", "nowcast.server": "embedded"})
    except ConfigError as error:
        raise ClusterError(str(error)) from error


def _server(server: str, client: JobSubmissionClient) -> str | None:
    if server in NO_SERVER:
        return None
    if server.startswith(BY_NAME):
        return server_url(server, serve_details(client))
    if not server.startswith(("http://", "https://")):
        raise ClusterError(f"--server {server!r}: give a URL, serve:NAME, or embedded")
    return server
