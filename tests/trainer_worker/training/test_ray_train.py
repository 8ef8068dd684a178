"""The whole job: Ray workers, a server process, HTTP, failures."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.util.queue import Queue
from server_process import ServerProcess
from small_runs import without_times
from waiting import until

from trainer_worker import cli
from trainer_worker.comparison import report
from trainer_worker.comparison.summary import Summary
from trainer_worker.errors import BadArgument, CommandFailed
from trainer_worker.tasks.task import Task
from trainer_worker.training import ray_train
from trainer_worker.training.config import Config, WorkersTable
from trainer_worker.training.ray_train import cluster, open_mailbox, train_on_ray
from trainer_worker.training.records import Order

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STEPS = 240


def config(folder: Path, *, data: str | None = None) -> Config:
    return Config.model_validate(
        {
            "task": {"name": "fm-16", "examples": 256, "data": data},
            "train": {"steps": STEPS, "batch_size": 16, "eval_every": 40, "checkpoint_every": 50},
            "nowcast": {"forecaster": "average", "mode": "jump", "interval": 6},
            "workers": {"count": 2, "threads": 1, "max_failures": 1},
            "output": {"folder": folder, "storage": f"local://{folder}/kept"},  # by way of fsspec, as to a cloud's store
        }
    )


def final_weights(folder: Path, run: str) -> torch.Tensor:
    """Of the newest checkpoint."""
    newest = max((folder / "kept" / "checkpoints" / run).glob("checkpoint_2*"))
    state = torch.load(newest / "run.pt", weights_only=True)
    assert state["step"] == STEPS
    return torch.cat([value.flatten() for value in state["model"].values()])


@pytest.fixture(scope="module")
def run(ray_cluster: None, fashion: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """One run with nowcasts of two workers over HTTP, as `nowcast train` makes it: its folder, its summary."""
    folder = tmp_path_factory.mktemp("run")
    cli._run(config(folder), compared=False, resume=False, fresh=True)
    return folder, report.read(folder)


def test_two_workers_jump_over_http(run: tuple[Path, Summary]) -> None:
    """The main job: every nowcast of the run was made by the server and loaded by the workers."""
    folder, summary = run
    (jumping,) = summary.runs
    assert jumping.outcomes == {"jumped": 7}  # every 30 steps, not at the end
    assert [event["horizon"] for event in jumping.events] == [40, 31, 23, 16, 11, 6, 3]
    snapshots = jumping.nowcast["snapshots"]
    assert (snapshots["taken"], snapshots["sent"], snapshots["dropped"]) == (35, 35, 0)  # those after the last jump serve none
    assert jumping.evaluations[0].train_loss > jumping.evaluations[-1].train_loss
    assert (folder / "server.log").read_text().count("nowcast tenant") == 7
    for name in ("summary.json", "report.png", "report.html"):
        assert (folder / "kept" / name).read_bytes() == (folder / name).read_bytes()


def kill_one_worker() -> None:
    """As a node that fails would: no goodbye. Only a process of this test's own cluster."""
    ours = psutil.Process().children(recursive=True)
    victim = next(process for process in ours if "RayTrainWorker" in "".join(process.cmdline()))
    victim.kill()


def test_a_killed_worker_leaves_no_trace_in_the_weights(run: tuple[Path, Summary], server: ServerProcess, tmp_path: Path) -> None:
    """Ray restarts the workers from the newest checkpoint, of step 100: same curves, same bits, the jumps over HTTP included."""
    folder, summary = run
    killed = []

    def listen(news: str) -> None:
        if news.startswith("step 120 of 240: validation loss ") and not killed:
            killed.append(news)
            kill_one_worker()

    order = Order(config=config(tmp_path), seed=1000, job="killed", server=server.url)
    record = train_on_ray(order, listen=listen)
    assert (len(killed), record.restores) == (1, 1)
    assert without_times(record) == without_times(summary.runs[0])
    assert torch.equal(final_weights(tmp_path, "adam+average-seed1000"), final_weights(folder, "adam+average-seed1000"))


def test_a_run_that_cannot_begin_or_cannot_work_says_why(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a cluster that is in use the command would wait for ever, silently; or the workers' own error would not reach the user."""
    monkeypatch.setattr(ray_train, "PATIENCE_S", 0.0)
    taken = Queue(actor_options={"num_cpus": 0.5})
    assert taken.empty()

    def free_when_told() -> None:
        until(lambda: caplog.messages)
        taken.shutdown(force=True)

    settings = config(tmp_path, data=str(tmp_path / "nothing")).model_copy(update={"nowcast": None})
    settings = settings.model_copy(update={"workers": settings.workers.model_copy(update={"max_failures": 0})})
    order = Order(config=settings, seed=1, job="broken")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(free_when_told)
        with pytest.raises(CommandFailed, match="the data set fashion-mnist was not found"):
            train_on_ray(order, listen=lambda news: None)
    assert "CPU: 2 x 1 asked for, 1.5 of 2 free" in caplog.messages[0]
    assert ray.is_initialized()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "[::1]:{port}", "127.0.0.1:99999", "nonsense"])
def test_an_address_without_a_cluster_is_one_sentence_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command would hang for ten minutes without a word, or end with a traceback of Ray's."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        meant = address.format(port=silent.getsockname()[1])
        with pytest.raises(CommandFailed, match="no Ray cluster at "), cluster(WorkersTable(address=meant)):
            pass


def test_a_mistake_of_the_users_is_told_as_one_and_not_tried_again(ray_cluster: None, tmp_path: Path) -> None:
    """The workers would be started `max_failures` times more, and the line that says what to mend be the end of a traceback."""
    asked = {"nowcast": {"forecaster": "oracle", "server": "embedded"}, "workers": {"count": 1}}
    settings = Config.model_validate({**config(tmp_path).model_dump(), **asked})
    order = Order(config=settings, seed=1, job="mistaken")
    with pytest.raises(BadArgument, match="forecaster: forecaster 'oracle' is not one of"):
        train_on_ray(order, listen=lambda news: None)


@pytest.mark.parametrize(("gpus", "asked", "idle"), [(2.0, 0, True), (2.0, 1, False), (0.0, 0, False)])
def test_gpus_that_are_left_idle_are_told(
    gpus: float, asked: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, idle: bool
) -> None:
    """A run without --gpus would train on the CPUs of a GPU cluster until the bill."""
    for name in ("available_resources", "cluster_resources"):
        monkeypatch.setattr(ray_train, name, lambda: {"CPU": 8.0, "GPU": gpus})
    ray_train.warn_without_room(1, {"CPU": 1, "GPU": asked})
    assert [message.partition(" of ")[0] for message in caplog.messages] == ["training on CPUs while 2 GPUs"] * idle


def _put_until_it_dies(mailbox: Any) -> None:
    while True:
        ray.get(mailbox.put_nowait.remote("step 1"))


def test_a_lost_mailbox_costs_progress_alone(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has finished would fail with the node that carried its progress, and that could be any."""
    options: dict[str, Any] = {}
    monkeypatch.setattr(ray_train, "Queue", lambda **given: options.update(given) or Queue(**given))
    heard: list[str] = []
    with open_mailbox(heard.append) as mailbox:
        ray.get(mailbox.put_nowait.remote("step 1"))
        until(lambda: heard)
        ray.kill(mailbox)
        with pytest.raises(ray.exceptions.RayActorError):
            _put_until_it_dies(mailbox)
    assert heard[0] == "step 1"
    here = options["actor_options"]["scheduling_strategy"]
    assert (here.node_id, here.soft) == (ray.get_runtime_context().get_node_id(), False)
