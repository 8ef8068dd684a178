"""`nowcast try`: the same script without and with nowcasts, and the difference in words."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainer_worker.trying import Course, report

SCRIPT = """
import sys
import torch
from torch import nn
from trainer_worker import Nowcast, Push

steps = int(sys.argv[1])
model = nn.Linear(8, 1)
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
truth = torch.arange(8.0)
push = Push(hold_norms=False)  # these weights start at zero and have to grow
with Nowcast(model, optimizer, max_steps=steps, server="embedded", forecaster="linear", push=push) as nowcast:
    for _ in range(steps):
        inputs = torch.randn(64, 8)
        loss = (model(inputs)[:, 0] - inputs @ truth).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        {tell}
print("weights", model.weight.sum().item(), "used", nowcast.summary()["nowcasts"]["used"])
"""


def attempt(tmp_path: Path, *arguments: str, tell: str = "nowcast.observe(loss)") -> subprocess.CompletedProcess[str]:
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT.replace("{tell}", tell))
    command = [sys.executable, "-m", "trainer_worker", "try", str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_script_that_drifts_is_faster(tmp_path: Path) -> None:
    """Nobody could say whether nowcasts help a loop of one's own without writing the comparison by hand."""
    done = attempt(tmp_path, "400")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"used (\d+)", done.stdout)[0] == "0"
    assert int(re.findall(r"used (\d+)", done.stdout)[1]) > 10
    saved = re.search(r"at 75% of the run.*without; \d+ steps \((-\d+)%\)", done.stdout)
    assert saved, done.stdout
    assert int(saved[1]) < -5


def test_the_run_without_is_the_scripts_own(tmp_path: Path) -> None:
    """It would be compared with a run that is not what the script does without nowcasts."""
    done = attempt(tmp_path, "40", "--seed", "3")
    plain = SCRIPT.replace("{tell}", "pass").replace("import torch\n", "import torch\ntorch.manual_seed(3)\n", 1)
    plain = (
        re.sub(r"with Nowcast\(.*\) as nowcast:", "if True:", plain).split('print("weights"')[0]
        + 'print("weights", model.weight.sum().item())'
    )
    alone = subprocess.run([sys.executable, "-c", plain, "40"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith(alone.stdout.strip())


@pytest.mark.parametrize(("tell", "says"), [("pass", "told no losses"), ("raise SystemExit(3)", "exit code 3")])
def test_a_script_that_cannot_be_compared(tmp_path: Path, tell: str, says: str) -> None:
    """A table of nothing, or success for a script that failed."""
    done = attempt(tmp_path, "5", tell=tell)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_run_that_never_gets_there_says_so() -> None:
    """Nowcasts that do harm would be shown as saving."""
    without = Course([1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0])
    worse = Course([1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0], [4.0, 4.0, 4.0, 4.0])
    lines = report({"without": without, "with": worse})
    assert "never with nowcasts" in lines[1]
    assert (
        "3 steps, 3 s without; 2 steps (-33%), 1.5 s (-50%)"
        in report({"without": without, "with": Course([1, 2], [0.5, 1.5], [3.0, 2.0])})[1]
    )
