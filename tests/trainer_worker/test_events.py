"""What a run tells of itself."""

import logging
from collections import Counter
from typing import Any

import pytest

from trainer_worker.events import Event, Journal


def test_a_trouble_that_lasts_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """With two hundred boundaries a run, a server that is down for an hour would hide every other warning."""
    journal = Journal("job", None)
    with caplog.at_level(logging.DEBUG, logger="trainer_worker.events"):
        for step, reason in enumerate(["", "late", "late", "busy", "", "busy"]):
            journal.add(Event(step, "nowcast", "skipped" if reason else "glided", reason))
        journal.add(Event(9, "server", "lost", "server_unavailable", "down"))
        journal.add(Event(9, "server", "back"))
    levels = [logging.getLevelName(record.levelno) for record in caplog.records]
    assert levels == ["DEBUG", "WARNING", "DEBUG", "WARNING", "DEBUG", "WARNING", "WARNING", "INFO"]


def test_a_journal_goes_on_where_it_was() -> None:
    """The summary of a resumed run would be that of its last part."""
    first, second = Journal("job", None), Journal("job", None)
    first.snapshots = 3
    first.add(Event(1, "nowcast", "glided", seconds=0.5))
    first.add(Event(2, "nowcast", "skipped", "late", "the forecast was not there in time"))
    first.add(Event(3, "snapshot", "dropped", "behind"))
    first.add(Event(4, "server", "lost", "server_unavailable"))
    second.load_state_dict(first.state_dict())
    assert second.events == first.events
    assert second.outcomes == first.outcomes == {"glided": 1, "skipped": 1, "dropped": 1, "lost": 1}
    assert (second.used, second.reasons, second.snapshots, second.waited_s) == (1, {"late": 1}, 3, 0.5)


USED = {"outcomes": Counter(glided=7, skipped=3), "reasons": Counter(late=2, busy=1)}
RUN = {"mode": "glide", "steps": 100, "first_due": 12, "grown_to": None, "skilled": False}


@pytest.mark.parametrize(
    ("counts", "run", "level", "says"),
    [
        ({}, {"steps": 0}, logging.WARNING, "no optimizer step was counted"),
        ({}, {"first_due": 500}, logging.WARNING, "no forecast was used in 100 steps: the first was due at step 500"),
        (USED, {}, logging.INFO, "100 steps, 7 forecasts used, 3 skipped (2 late, 1 busy); to see what they saved"),
        (USED, {"grown_to": 40}, logging.INFO, "; they came late, so the interval grew to 40 steps; to see"),
        (USED, {"mode": "shadow", "skilled": True}, logging.INFO, "7 forecasts scored, 3 skipped (2 late, 1 busy); see summary()"),
        (USED, {"mode": "shadow"}, logging.INFO, "none came true before the end"),
    ],
)
def test_the_closing_line_says_how_it_went(counts: dict[str, Any], run: dict[str, Any], level: int, says: str) -> None:
    """Scored forecasts called used, or no word on why there were none, and a user draws the wrong conclusion."""
    journal = Journal("job", None)
    vars(journal).update(counts)
    told, sentence = journal.closing_line(**{**RUN, **run})  # type: ignore[arg-type]
    assert told == level
    assert says in sentence
