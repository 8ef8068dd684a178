"""What a terminal shows of runs."""

import io
from pathlib import Path

from rich.console import Console

from trainer_worker.training.config import Config
from trainer_worker.training.progress import RunBar, bars
from trainer_worker.training.records import Arm, Order


def test_words_in_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    """A server's message about `[/models/x]` would be read as markup, and end the run; that about `[red]` would lack a word."""
    config = Config.model_validate({"task": {"name": "fm-16"}, "output": {"folder": tmp_path}})
    console = Console(file=io.StringIO(), width=200)
    detail = "[/models/x] and [red] are gone"
    event = {"step": 3, "kind": "nowcast", "outcome": "skipped", "reason": "unavailable", "detail": detail}
    with bars(console) as shown:
        RunBar(shown, Order(config=config, arm=Arm(name="adam+[/x]"), seed=1, job="job"))({"event": event})
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert detail in text
    assert "adam+[/x]" in text


def test_a_trouble_that_lasts_is_shown_once(tmp_path: Path) -> None:
    """Two hundred lines about a server that is down, and none to be found about anything else."""
    config = Config.model_validate({"task": {"name": "fm-16"}, "output": {"folder": tmp_path}})
    console = Console(file=io.StringIO(), width=200)
    with bars(console) as shown:
        show = RunBar(shown, Order(config=config, arm=Arm(name="adam+x"), seed=1, job="job"))
        for step, reason in enumerate(["", "late", "late", "", "late"]):
            show({"event": {"step": step, "kind": "nowcast", "outcome": "skipped" if reason else "glided", "reason": reason}})
        show({"event": {"step": 9, "kind": "nowcast", "outcome": "jumped", "horizon": 40}})
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("skipped (late)") == 2
    assert "glided" not in text
    assert "jumped, horizon 40" in text
