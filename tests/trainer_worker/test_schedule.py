"""Horizon policies."""

import pytest

from trainer_worker import AdaptiveHorizon, BadArgument, BestAfterRecovery, FixedHorizon, PaperSchedule
from trainer_worker.schedule import Cautious, Learner, paper_horizons


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


def test_a_fixed_horizon() -> None:
    """What baselines are measured with."""
    assert FixedHorizon(7).horizons(10**9) == (7,)
    for wrong in (0, 2.5):  # a fraction would end the run in a traceback at its first jump
        with pytest.raises(BadArgument, match="at least 1"):
            FixedHorizon(wrong)  # type: ignore[arg-type]


def test_an_adaptive_horizon_follows_its_outcomes() -> None:
    """A horizon that does not grow with success gives gains away; one that does not fall after failure pays for each again."""
    policy = AdaptiveHorizon(start=4, furthest=10)
    seen = []
    for accepted in (True, True, True, False, False, False, False, True):
        policy.learn(accepted=accepted)
        seen += policy.horizons(100)
    assert seen == [8, 10, 10, 5, 2, 1, 1, 2]
    resumed = AdaptiveHorizon(start=4, furthest=10)
    resumed.load_state_dict(policy.state_dict())
    assert resumed.horizons(100) == (2,)
    for start in (0, 11):
        with pytest.raises(BadArgument, match="from 1 to furthest = 10"):
            AdaptiveHorizon(start=start, furthest=10)


def test_any_policy_is_made_cautious() -> None:
    """A schedule that goes on as planned after a rollback would fail at the same distance again."""
    policy = Cautious(FixedHorizon(9))
    seen = []
    for accepted in (False, False, True, True, True):
        policy.learn(accepted=accepted)
        seen += policy.horizons(100)
    assert seen == [4, 2, 4, 9, 9]
    assert policy.furthest == 9
    assert isinstance(policy, Learner)
    assert not isinstance(FixedHorizon(9), Learner)


def test_candidates_are_shares_of_a_policys_horizon() -> None:
    """Candidates of the same horizon would be tried twice for nothing; the longest first is what is tried where only one can be."""
    policy = BestAfterRecovery(PaperSchedule(max_steps=3000, period=1000))
    assert [policy.horizons(step) for step in (1000, 2000, 3000)] == [(40, 20, 10), (13, 6, 3), ()]
    policy.learn(accepted=False)
    assert policy.horizons(1000) == (20, 10, 5)
    resumed = BestAfterRecovery(PaperSchedule(max_steps=3000, period=1000))
    resumed.load_state_dict(policy.state_dict())
    assert resumed.horizons(1000) == (20, 10, 5)
    policy.learn(accepted=True)
    assert policy.horizons(1000) == (40, 20, 10)
    assert policy.furthest == 40
    assert BestAfterRecovery(FixedHorizon(2)).horizons(1000) == (2, 1)
    assert BestAfterRecovery(FixedHorizon(8), shares=(0.5, 1.0)).horizons(1000) == (4, 8)


def test_candidates_that_cannot_be() -> None:
    """A share above 1 would go beyond `furthest`; a policy that learns would never be told of what happened."""
    for shares in ((), (0.0,), (1.5,)):
        with pytest.raises(BadArgument, match="shares"):
            BestAfterRecovery(FixedHorizon(8), shares=shares)
    with pytest.raises(BadArgument, match="AdaptiveHorizon learns from outcomes by itself"):
        BestAfterRecovery(AdaptiveHorizon())


def test_a_cautious_policy_comes_back_from_a_row_of_failures() -> None:
    """Ten jumps that were undone would take ten that stay to make up for, where two halvings are all there can be."""
    policy = Cautious(FixedHorizon(4))
    for _ in range(10):
        policy.learn(accepted=False)
    assert policy.horizons(0) == (1,)
    for _ in range(3):
        policy.learn(accepted=True)
    assert policy.horizons(0) == (4,)
