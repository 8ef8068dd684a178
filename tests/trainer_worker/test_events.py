"""What a run tells of itself."""

import logging
from pathlib import Path

import pytest

from trainer_worker.errors import DECISIONS
from trainer_worker.events import Event, Journal

METRICS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


@pytest.mark.parametrize(("reason", "level"), [("paused", logging.INFO), ("", logging.INFO), ("timeout", logging.WARNING)])
def test_a_decision_of_the_run_itself_is_no_warning(reason: str, level: int, caplog: pytest.LogCaptureFixture) -> None:
    """A run that has used up its trials would warn of it until its end, and hide the warnings that matter."""
    with caplog.at_level(logging.INFO, logger="trainer_worker.events"):
        Journal("job", None).add(Event(10, "nowcast", "skipped", reason=reason))
    assert [record.levelno for record in caplog.records] == [level]


def test_every_decision_is_explained() -> None:
    """The word is all that the summary of a run says."""
    page = METRICS.read_text()
    assert [reason for reason in DECISIONS if f"| `{reason}` |" not in page] == []
