"""How a process ends that nowcasts: whatever is under way, at once and in peace."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, threading
sys.path[:0] = [{here!r}, {tests!r}]
import torch
from small_runs import FULL, STEPS, ScriptedEndpoint, adam, make, network, step

begun = threading.Event()

def fail(call):
    if call == "forecast":
        begun.set()
        threading.Event().wait()  # for ever

model = network()
optimizer = adam(model)
nowcast = make(model, optimizer, ScriptedEndpoint(fail=fail, local=False)).start()
for index in range(STEPS):
    step(model, optimizer, index)
assert begun.wait(20)
print("training", flush=True)
{then}
"""
ENDS = {
    "end": ("", 0),
    "interrupt": ("signal = __import__('signal'); __import__('os').kill(__import__('os').getpid(), signal.SIGINT)", -signal.SIGINT),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_process_ends_while_a_forecast_is_under_way(how: str) -> None:
    """A job that hangs at its end, or ends with another code than its own, is restarted, or counted as failed."""
    then, code = ENDS[how]
    here = Path(__file__).parent
    script = SCRIPT.format(here=str(here), tests=str(here.parent), then=then)
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (code, 130 if code == -signal.SIGINT else code), errors
    assert "Fatal Python error" not in errors
