"""What a run tells of itself."""

import logging

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
    first.tally.snapshots = 3
    first.add(Event(1, "nowcast", "glided", seconds=0.5))
    first.add(Event(2, "nowcast", "skipped", "late", "the forecast was not there in time"))
    first.add(Event(3, "snapshot", "dropped", "behind"))
    first.add(Event(4, "server", "lost", "server_unavailable"))
    second.load_state_dict(first.state_dict())
    assert second.events == first.events
    assert second.tally == first.tally
    assert (second.tally.used, second.tally.dropped, second.tally.waited_s) == (1, 1, 0.5)
