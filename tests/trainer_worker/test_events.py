"""What a run tells of itself."""

import logging
from collections import Counter
from typing import Any

import pytest

from trainer_worker.events import Journal

USED = {"outcomes": Counter(glided=7, skipped=3), "reasons": Counter(late=2, busy=1)}
RUN = {"mode": "glide", "steps": 100, "of": 100, "first_due": 12, "grown_to": 0, "skilled": False}


@pytest.mark.parametrize(
    ("counts", "run", "level", "says"),
    [
        ({}, {"steps": 0}, logging.WARNING, "no optimizer step was counted"),
        ({}, {"first_due": 500, "of": 9000}, logging.WARNING, "used in 100 of 9000 steps: the first was due at step 500"),
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
