"""Horizon policies."""

import pytest

from trainer_worker import BadArgument, FixedHorizon, PaperSchedule
from trainer_worker.schedule import paper_horizons


def test_the_papers_schedule() -> None:
    """Every figure of the paper was made with these horizons."""
    assert paper_horizons(10) == (40, 33, 26, 21, 16, 11, 8, 5, 3, 1)
    assert paper_horizons(10, power=1) == (40, 36, 31, 27, 23, 18, 14, 10, 5, 1)
    assert paper_horizons(1) == (40,)
    assert paper_horizons(0) == ()


def test_the_paper_schedule_over_a_run() -> None:
    """A jump on the last step, or after it, would leave the run with the spike that no step repairs."""
    schedule = PaperSchedule(max_steps=3000, period=1000)
    assert [schedule.horizons(step) for step in (1000, 2000, 3000, 4000)] == [(40,), (13,), (), ()]
    assert PaperSchedule(max_steps=3500, period=1000).horizons(3000) == (1,)
    assert schedule.choose(1000, (40,)) == 40


def test_a_fixed_horizon() -> None:
    """It has to end with the run as well."""
    assert [FixedHorizon(7, 2000).horizons(step) for step in (1000, 2000)] == [(7,), ()]
    assert FixedHorizon(7).horizons(10**9) == (7,)
    with pytest.raises(BadArgument, match="at least 1"):
        FixedHorizon(0)
