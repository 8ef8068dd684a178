"""`nowcast try`: the same script without and with nowcasts, and the difference in words."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trainer_worker.cli import app
from trainer_worker.trying import Told, report, run, smooth

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


def test_a_script_that_drifts_is_faster_and_the_run_without_is_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could say whether nowcasts help a loop of one's own; or it would be compared with another script's run."""
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT.replace("{tell}", "nowcast.observe(loss)"))
    courses = run(script, ["400"], seed=3)
    told, log = capfd.readouterr()
    assert re.search(r"400 steps, \d+ forecasts used; to see what they saved", log)  # though no log is set up
    assert "no forecast was used" not in log
    without, used = re.findall(r"used (\d+)", told)
    assert (int(without), int(used) > 10) == (0, True)
    saved = re.search(r"at 75% of the run.*without; \d+ steps \((-\d+)%\)", "\n".join(report(*courses)))
    assert saved, report(*courses)
    assert int(saved[1]) < -5
    plain = SCRIPT.replace("{tell}", "pass").replace("import torch\n", "import torch\ntorch.manual_seed(3)\n", 1)
    plain = re.sub(r"with Nowcast\(.*\) as nowcast:", "if True:", plain).split('print("weights"')[0]
    monkeypatch.setattr(sys, "argv", ["mine.py", "400"])
    alone: dict[str, Any] = {}
    exec(plain, alone)
    assert f"weights {alone['model'].weight.sum().item()} used 0" in told


@pytest.mark.parametrize(("tell", "says"), [("pass", "told no losses"), ("raise SystemExit(3)", "exit code 3")])
def test_a_script_that_cannot_be_compared(tmp_path: Path, tell: str, says: str) -> None:
    """A table of nothing, or success for a script that failed."""
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT.replace("{tell}", tell))
    result = CliRunner().invoke(app, ["try", str(script), "5"])
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_script_that_resumes_cannot_be_compared(tmp_path: Path) -> None:
    """The second run would go on from the first one's checkpoint, and what is left of it pass for the steps it takes."""
    script, kept = tmp_path / "mine.py", tmp_path / "kept"
    text = SCRIPT.replace(
        "    for _ in range(steps):",
        f"""    from pathlib import Path
    kept = Path({str(kept)!r})
    nowcast.begin_at(3 if kept.exists() else 0)
    kept.touch()
    for _ in range(steps):""",
    )
    script.write_text(text.replace("{tell}", "nowcast.observe(loss)"))
    result = CliRunner().invoke(app, ["try", str(script), "5"])
    assert (result.exit_code, "begin at step 1 without nowcasts, at step 4 with" in result.stderr) == (2, True), result.stderr


def test_a_run_that_never_gets_there_says_so() -> None:
    """Nowcasts that do harm would be shown as saving."""
    without = [Told(step, float(step), 5.0 - step) for step in (1, 2, 3, 4)]
    worse = [told._replace(loss=4.0) for told in without]
    assert "never with nowcasts" in report(without, worse)[1]
    assert "3 steps, 3 s without; 2 steps (-33%), 1.5 s (-50%)" in report(without, [Told(1, 0.5, 3.0), Told(2, 1.5, 2.0)])[1]
    diverged = [told._replace(loss=float("nan")) for told in without]
    assert report(diverged, without)[1].endswith("nan: the run without diverged")


def test_a_loss_that_was_low_by_chance_is_no_goal_reached() -> None:
    """Both runs would be there at their first step, whatever came after."""
    course = smooth([Told(step, float(step), (3.0 if step % 2 else 5.0) - step / 200) for step in range(1, 201)])
    assert "200 steps, 200 s without; 200 steps (+0%)" in report(course, course)[2]
