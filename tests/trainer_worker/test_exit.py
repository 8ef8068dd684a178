"""How a process ends that nowcasts: whatever is under way, at once and in peace."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from waiting import until

from trainer_worker.tasks.task import Task

HERE = Path(__file__).parent
ENDED_S = 2.0
"""How long an end may take."""

HANGING_SERVER = """
import sys, threading
sys.path[:0] = [{here!r}, {tests!r}]
from small_runs import ScriptedEndpoint, learner, make, step

begun = threading.Event()

def fail(call):
    if call == "forecast":
        begun.set()
        threading.Event().wait()  # for ever

model, optimizer = learner()
nowcast = make(model, optimizer, ScriptedEndpoint(fail=fail, local=False), max_steps=None).start()
index = 0
while not begun.wait(0.01):  # on a busy machine the first forecasts are skipped as late, and asked for again
    step(model, optimizer, index := index + 1)
print("under way", flush=True)
{then}
"""

EMBEDDED = """
import atexit, signal, sys, threading, time
import torch
from torch import nn
from trainer_worker import Nowcast, Push
from trainer_worker.endpoints.embedded import EmbeddedEndpoint

ending = [0.0]
atexit.register(lambda: print(f"{{time.monotonic() - ending[0]:.2f}}", flush=True))  # first registered, last called

def end(*signal):
    ending[0] = time.monotonic()
    if signal:
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, end)
begun = threading.Event()
forecast = EmbeddedEndpoint.forecast

def told(*arguments, **options):
    begun.set()
    print("under way", flush=True)
    return forecast(*arguments, **options)

EmbeddedEndpoint.forecast = told
model = nn.Sequential(*[nn.Linear(700, 700) for _ in range(4)])
for parameter in model.parameters():
    parameter.grad = torch.ones_like(parameter)
optimizer = torch.optim.SGD(model.parameters(), 1e-4)
wait = {wait!r}
with Nowcast(model, optimizer, forecaster="nino", max_steps=1000, interval=2, push=Push(start=0.0)):
    while wait or not begun.is_set():
        if not wait:
            time.sleep(0.05)
        optimizer.step()
    time.sleep(0.1)
    {then}
"""
ENDS = {"end": ("end()", 0), "exit": ("end(); sys.exit(3)", 3), "error": ("end(); raise ValueError('its own')", 1)}
INTERRUPTED = (130, -signal.SIGINT)

STUBBORN = """
import sys, threading, time
import torch
from torch import nn
from nowcast_server.forecasters import Forecaster, register
from trainer_worker import Nowcast

begun = threading.Event()

class Stubborn(Forecaster):
    name = "stubborn"

    def predict(self, wiring, states, *, horizons):
        begun.set()
        ends = time.monotonic() + 4
        while time.monotonic() < ends:
            torch.randn(500, 500) @ torch.randn(500, 500)
        return states[-1].repeat(len(horizons), 1)

register("stubborn", Stubborn)
model = nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-4)
with Nowcast(model, optimizer, forecaster="stubborn", interval=1):
    for _ in range(5):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    assert begun.wait(20)
sys.exit(3)
"""

JOB = """
task = { name = "fm-16", examples = 400 }
train = { steps = 20000, batch_size = 32, eval_every = 200, checkpoint_every = 50 }
nowcast = { interval = 40 }
workers = { count = 0 }
"""

COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever runs the tests may have it ignored
from trainer_worker.cli import main
main()
"""


def started(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def under_way(script: str) -> subprocess.Popen[str]:
    """A process whose forecast has just begun."""
    process = started(script)
    assert process.stdout.readline() == "under way\n"
    return process


@pytest.mark.parametrize(("then", "codes"), [("", (0,)), ("__import__('signal').raise_signal(2)", INTERRUPTED)])
def test_a_process_ends_while_a_server_hangs(then: str, codes: tuple[int, ...]) -> None:
    """A job that hangs at its end, or ends with another code than its own, is restarted, or counted as failed."""
    process = under_way(HANGING_SERVER.format(here=str(HERE), tests=str(HERE.parent), then=then))
    _, errors = process.communicate(timeout=120)
    assert process.returncode in codes, errors
    assert "Fatal Python error" not in errors


@pytest.mark.parametrize("how", ENDS)
def test_a_run_ends_while_a_forecast_is_made_in_its_process(how: str) -> None:
    """A finished run that is aborted (exit code -6), or waits for a forecast that nobody will use."""
    then, code = ENDS[how]
    output, errors = (process := under_way(EMBEDDED.format(wait=False, then=then))).communicate(timeout=120)
    assert process.returncode == code, errors
    assert ("ValueError: its own" in errors) == (how == "error")
    assert "lost" not in errors
    assert float(output.split()[-1]) < ENDED_S


def test_ctrl_c_while_training_waits_for_a_forecast() -> None:
    """Whoever presses Ctrl-C would press it again, harder, and lose what the script does at its end."""
    process = under_way(EMBEDDED.format(wait=True, then=""))
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode in INTERRUPTED, errors
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert float(output.split()[-1]) < ENDED_S


def test_a_forecaster_that_cannot_be_stopped_does_not_abort_the_process() -> None:
    """Somebody's own forecaster, deep in a computation when the interpreter ends, would abort a run that went well."""
    _, errors = (process := started(STUBBORN)).communicate(timeout=120)
    assert process.returncode == 3, errors
    assert "stubborn is still computing a forecast" in errors


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_command_that_is_interrupted_takes_its_server_along(
    fashion: Task, tmp_path: Path, sign: signal.Signals, code: int
) -> None:
    """A closed terminal would leave a server running for good; or a run would be neither ended nor resumable."""
    (tmp_path / "job.toml").write_text(JOB)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "train", "job.toml", "--server", "own", "--out", "x y ü #1 100%"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    until(lambda: list((tmp_path / "x y ü #1 100%").rglob("checkpoint.pt")) or process.poll() is not None, within_s=120)
    servers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(sign)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert len(servers) == 1
    assert not psutil.wait_procs(servers, timeout=15)[1]
