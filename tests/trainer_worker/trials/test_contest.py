"""Several candidates for one jump: the best stays, as it was at the end of its window, and what that may cost."""

import io
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from small_runs import CONTEXT, WHOLE, ShiftingEndpoint, flat, wait_for_forecasts
from torch import nn
from torch.nn import functional

from trainer_worker import BadArgument, BestAfterRecovery, FixedHorizon, Guard, Nowcast
from trainer_worker.schedule import Policy

INTERVAL = 4
PERIOD = CONTEXT * INTERVAL
RECOVERY = 4
AFTER = 7
"""Steps after the verdict that are compared as well."""


class Run:
    """A run whose batches and dropout come from torch's global random state, and whose jumps are judged by horizon.

    Args:
        losses: that the probe gives while a horizon is tried, relative to the run's course; one for the whole window, or one a
            step from the jump on, the last for all the rest. None for a run without nowcasts.
        slope: of the course, a power law.
    """

    def __init__(
        self, losses: Mapping[int, float | tuple[float, ...]] | None = None, *, slope: float = 0.0, **options: Any
    ) -> None:
        torch.manual_seed(7)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 50_000)
        self.losses, self.slope = losses, slope
        self.endpoint = ShiftingEndpoint()
        self.nowcast: Nowcast | None = None
        if losses is None:
            return
        defaults = {
            "max_steps": 1000,
            "interval": INTERVAL,
            "context": CONTEXT,
            "probe": self.held,
            "server": self.endpoint,
            "jump": WHOLE,
        }
        policy = BestAfterRecovery(FixedHorizon(8))
        guard = Guard(RECOVERY, budget=1.0, also=(self.schedule,))
        self.nowcast = Nowcast(self.model, self.optimizer, **{**defaults, "policy": policy, "guard": guard, **options})

    def held(self) -> float:
        assert self.nowcast is not None
        assert self.losses is not None
        torch.rand(1)  # a probe may draw numbers
        contest = self.trials._contest
        if contest.trial is None:
            return self.course(self.nowcast.step)
        since = self.nowcast.step - contest.trial.step
        loss = self.losses[contest.trial.horizon]
        losses = loss if isinstance(loss, tuple) else (loss,)
        return losses[min(since, len(losses) - 1)] * self.course(contest.step + since)

    def course(self, step: int) -> float:
        return 2.0 * max(1, step) ** -self.slope

    @property
    def trials(self) -> Any:
        assert self.nowcast is not None
        return self.nowcast._cycle._trials

    def train(self, steps: int) -> None:
        for _ in range(steps):
            inputs = torch.randn(32, 8)
            self.optimizer.zero_grad()
            functional.cross_entropy(self.model(inputs), (inputs.sum(1) > 0).long()).backward()
            self.optimizer.step()
            self.schedule.step()

    def go(self, steps: int) -> "Run":
        """Train from the first step on, always on the same batches."""
        torch.manual_seed(1)
        if self.nowcast is None:
            self.train(steps)
            return self
        with self.nowcast:
            self.train(steps)
        return self

    def bits(self) -> torch.Tensor:
        """Weights, buffers, moments and random state."""
        buffers = [buffer.double().reshape(-1) for buffer in self.model.buffers()]
        moments = [value.double().reshape(-1) for state in self.optimizer.state.values() for value in state.values()]
        rates = torch.tensor([self.optimizer.param_groups[0]["lr"]], dtype=torch.float64)
        return torch.cat([flat(self.model).double(), *buffers, *moments, rates, torch.get_rng_state().double()])

    @property
    def told(self) -> list[tuple[int, str, int | None, str, int]]:
        """What became of each nowcast."""
        assert self.nowcast is not None
        return [(event.step, event.outcome, event.horizon, event.reason, event.cost_steps) for event in self.nowcast.events]

    @property
    def asked(self) -> list[tuple[int, ...]]:
        return [horizons for _, horizons in self.endpoint.asked]


def single(horizon: int) -> Run:
    """A run that makes one jump, which stays, until some steps after the verdict."""
    return Run({horizon: 1.0}, policy=FixedHorizon(horizon)).go(PERIOD + RECOVERY + AFTER)


@pytest.mark.parametrize("best", [8, 4, 2])
def test_the_best_candidate_stays_as_it_was_at_the_end_of_its_window(best: int) -> None:
    """A best one that had to be trained again, or lost its moments or random numbers, would be another than was judged."""
    run = Run({8: 0.98, 4: 0.97, 2: 0.96, best: 0.9}).go(PERIOD + 3 * RECOVERY + AFTER)
    assert run.told == [(PERIOD, "accepted", best, "", 2 * RECOVERY)]
    assert run.asked == [(8, 4, 2)]
    assert torch.equal(run.bits(), single(best).bits())
    assert run.nowcast is not None
    assert run.nowcast.summary()["cost_steps"] == 2 * RECOVERY
    (outcome,) = run.endpoint.outcomes
    assert (outcome.horizon, outcome.outcome, outcome.cost_steps) == (best, "accepted", 2 * RECOVERY)


@pytest.mark.parametrize("best", [8, 2])
def test_the_next_context_is_the_best_candidates(best: int) -> None:
    """Snapshots of a candidate that was dropped are no part of the way the run has come."""
    run = Run({8: 0.98, 4: 0.97, 2: 0.96, best: 0.9})
    snapshots: dict[int, torch.Tensor] = {}
    assert run.nowcast is not None
    torch.manual_seed(1)
    origin = PERIOD + (3 if best == 8 else 2) * RECOVERY  # the last candidate's window is a part of it
    with run.nowcast:
        for step in range(1, origin + PERIOD):
            run.train(1)
            snapshots[step] = flat(run.model)
        run.train(1)
    assert [step for step, _ in run.endpoint.asked] == [PERIOD, origin + PERIOD]
    for step in range(origin + INTERVAL, origin + PERIOD, INTERVAL):
        assert torch.equal(run.endpoint.history[step], snapshots[step])


def test_without_a_good_candidate_the_run_is_what_it_would_have_been() -> None:
    """Three bad jumps must leave no more of a trace than one."""
    run = Run({8: 1.06, 4: 1.05, 2: 1.07}).go(PERIOD + 3 * RECOVERY + AFTER)
    assert run.told == [(PERIOD, "rejected", 4, "not_recovered", 3 * RECOVERY)]
    assert torch.equal(run.bits(), Run().go(PERIOD + AFTER).bits())


@pytest.mark.parametrize(
    ("losses", "expected", "steps"),
    [
        ({8: math.nan, 4: 1.0, 2: 1.01}, (PERIOD, "accepted", 4, "", RECOVERY), 2 * RECOVERY),
        ({8: (1.0, 50.0), 4: 0.9, 2: 1.0}, (PERIOD, "accepted", 4, "", 1 + RECOVERY), 1 + 2 * RECOVERY),
        ({8: (0.8, 0.8, 0.8, math.nan), 4: 1.0, 2: 1.01}, (PERIOD, "accepted", 4, "", 3 + RECOVERY), 3 + 2 * RECOVERY),
        ({8: 0.9, 4: 1.0, 2: (1.0, 50.0)}, (PERIOD, "accepted", 8, "", RECOVERY + 1), 2 * RECOVERY + 1),
        ({8: 1.0, 4: math.inf, 2: math.inf}, (PERIOD, "accepted", 8, "", 0), RECOVERY),
        ({8: math.nan, 4: math.nan, 2: math.nan}, (PERIOD, "rejected", 2, "hopeless", 0), 0),
        ({8: math.nan, 4: (1.0, 50.0), 2: math.nan}, (PERIOD, "rejected", 2, "hopeless", 1), 1),
    ],
)
def test_a_hopeless_candidate_is_out_and_the_next_is_tried(
    losses: dict[int, float | tuple[float, ...]], expected: tuple[int, str, int, str, int], steps: int
) -> None:
    """One absurd forecast must neither end the comparison nor cost a window, nor be what stays."""
    run = Run(losses).go(PERIOD + steps + AFTER)
    assert run.told == [expected]
    _, outcome, horizon, *_ = expected
    kept = single(horizon) if outcome == "accepted" else Run().go(PERIOD + AFTER)
    assert torch.equal(run.bits(), kept.bits())


@pytest.mark.parametrize("last", [1.0, 50.0])
def test_all_candidates_are_held_against_the_same_course(last: float) -> None:
    """They start from the same weights: steps that were undone have brought the later ones nowhere."""
    run = Run({horizon: (1.0, last + 0.01 * horizon) for horizon in (8, 4, 2)}, slope=0.1)  # the last one is the best
    run.go(PERIOD + 3 * RECOVERY)
    assert run.nowcast is not None
    (event,) = run.nowcast.events
    since = RECOVERY if last == 1.0 else 1  # a loss stands for the steps before it, the script's for one
    assert event.expected_loss == pytest.approx(run.course(PERIOD + since), rel=5e-3)


@pytest.mark.parametrize("loss", [0.9, 1.03])
@pytest.mark.parametrize("budget", [0.0, 0.02, 0.05, 0.3])
def test_comparing_costs_no_more_than_was_granted(loss: float, budget: float) -> None:
    """Nobody chooses this policy to lose more steps than he said, whatever the candidates come to."""
    steps = 40 * PERIOD
    losses = dict.fromkeys((8, 4, 2, 1), loss)
    run = Run(losses, max_steps=steps, guard=Guard(RECOVERY, tolerance=1.0, budget=budget)).go(steps)
    limit = max(RECOVERY, int(budget * steps))
    assert run.nowcast is not None
    assert run.nowcast.summary()["cost_steps"] == sum(cost for *_, cost in run.told) <= limit
    assert all(cost <= (3 if outcome == "rejected" else 2) * RECOVERY for _, outcome, *_, cost in run.told)
    assert (len(run.asked[0]) == 3) == (budget > 0.0)
    if loss < 1:  # whoever finds no bad jump goes on with single ones
        assert {outcome for _, outcome, *_ in run.told[:-1]} == {"accepted"}
        assert len(run.asked[-1]) == (3 if budget == 0.3 else 1)


def test_where_the_budget_is_short_there_are_fewer_candidates() -> None:
    """A comparison that runs into the budget, and stops, would have paid for nothing."""
    run = Run(dict.fromkeys((8, 4, 2), 1.0), max_steps=400, guard=Guard(RECOVERY, budget=0.04)).go(5 * PERIOD - 1)
    assert [len(horizons) for horizons in run.asked] == [3, 2, 1]  # 4 windows; then what 2 of them, and 1 more, left
    assert [cost for *_, cost in run.told] == [2 * RECOVERY, RECOVERY, 0]


def test_no_candidate_is_begun_that_cannot_recover_in_time() -> None:
    """A run that ends within a window has lost the best it had."""
    run = Run(dict.fromkeys((8, 4, 2), 1.0), max_steps=PERIOD + 3 * RECOVERY - 1).go(PERIOD + 2 * RECOVERY)
    assert run.asked == [(8, 4)]
    assert [outcome for _, outcome, *_ in run.told] == ["accepted"]


@pytest.mark.parametrize("loss", [0.97, 1.03])
def test_windows_that_were_granted_are_not_held_against_the_tolerance(loss: float) -> None:
    """A quarter of a percent would be used up by the first comparison, and no jump would be tried again."""
    several = Run(dict.fromkeys((8, 4, 2), loss), slope=0.1).go(PERIOD + 3 * RECOVERY)
    one = Run({8: loss}, slope=0.1, policy=FixedHorizon(8)).go(PERIOD + RECOVERY)
    assert several.told[0][1] == one.told[0][1] == ("accepted" if loss < 1 else "rejected")
    assert several.told[0][-1] == one.told[0][-1] + 2 * RECOVERY
    assert several.trials._record.lost == pytest.approx(one.trials._record.lost)


@pytest.mark.parametrize("stop", range(PERIOD - 1, PERIOD + 3 * RECOVERY + 3))
@pytest.mark.parametrize("best", [8, 4, 2])
def test_a_run_resumes_in_the_middle_of_a_comparison(stop: int, best: int) -> None:
    """A preemption would otherwise lose the candidates still to come, or the best there was."""
    losses = {8: 0.98, 4: 0.97, 2: 0.96, best: 0.9}
    unbroken = Run(losses).go(PERIOD + 3 * RECOVERY + AFTER)
    expected = unbroken.bits()
    second, first = Run(losses), Run(losses).go(stop)
    file = io.BytesIO()
    names = ("model", "optimizer", "schedule", "nowcast")
    torch.save({**{name: getattr(first, name).state_dict() for name in names}, "random": torch.get_rng_state()}, file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    for name in names:
        getattr(second, name).load_state_dict(states[name])
    torch.set_rng_state(states["random"])
    assert second.nowcast is not None
    with second.nowcast:
        second.train(PERIOD + 3 * RECOVERY + AFTER - stop)
    assert torch.equal(second.bits(), expected)
    assert second.told == unbroken.told
    assert len(first.endpoint.asked + second.endpoint.asked) == 1  # what was forecast is part of the checkpoint


def test_late_candidates_start_from_the_same_weights() -> None:
    """What comes late is added to where the run is then, and the second candidate to where the first was, not to where it led."""
    run = Run({8: 1.0, 4: 0.9, 2: 1.0}, overlap=True)
    assert run.nowcast is not None
    before = []
    run.optimizer.register_step_post_hook(lambda *_: before.append(flat(run.model)))  # runs before the nowcast's
    after = []
    with run.nowcast:
        for _ in range(PERIOD):
            run.train(1)
            after.append(flat(run.model))
        wait_for_forecasts(run.nowcast)
        for _ in range(3 * RECOVERY + 1):
            run.train(1)
            after.append(flat(run.model))
    start = before[PERIOD]  # a step late
    moved = [after[PERIOD + index * RECOVERY] - start for index in range(3)]
    for shift, horizon in zip(moved, (8, 4, 2), strict=True):
        torch.testing.assert_close(shift, torch.full_like(shift, 0.01 * horizon), atol=1e-6, rtol=0.0)
    assert torch.equal(after[-1], before[PERIOD + 2 * RECOVERY])  # the end of the second one's window
    assert run.told == [(PERIOD, "accepted", 4, "", 2 * RECOVERY)]


def test_late_candidates_end_with_the_run() -> None:
    """Room that was there when the forecasts were asked for may be gone when they come."""
    run = Run({8: 1.0, 4: 0.9}, overlap=True, max_steps=PERIOD + 2 * RECOVERY)
    assert run.nowcast is not None
    with run.nowcast:
        run.train(PERIOD)
        wait_for_forecasts(run.nowcast)
        run.train(2 * RECOVERY)
    assert run.asked == [(8, 4)]
    assert run.told == [(PERIOD, "accepted", 8, "", 0)]


def test_in_shadow_mode_candidates_are_only_forecast() -> None:
    """They are scored, all of them, and nothing else happens."""
    run = Run({}, shadow=True)
    assert run.nowcast is not None
    torch.manual_seed(1)
    with run.nowcast:
        run.train(PERIOD)
        wait_for_forecasts(run.nowcast)
        run.train(AFTER)
    assert run.asked == [(8, 4, 2)]
    assert run.nowcast.summary()["reasons"] == {"shadow": 1}
    assert torch.equal(run.bits(), Run().go(PERIOD + AFTER).bits())


@pytest.mark.parametrize(("loss", "learnt"), [(0.9, True), (1.05, False)])
def test_a_policy_that_learns_hears_once_of_a_nowcast(loss: float, learnt: bool) -> None:  # noqa: FBT001
    """Told of each candidate, it would be made bold or cautious three times for one decision."""
    heard = []

    class Listening(BestAfterRecovery):
        def learn(self, *, accepted: bool) -> None:
            heard.append(accepted)

    Run({8: 1.05, 4: loss, 2: 1.05}, policy=Listening(FixedHorizon(8))).go(PERIOD + 3 * RECOVERY)
    assert heard == [learnt]


def test_a_single_candidate_takes_no_memory_for_a_second_state() -> None:
    """Whoever compares nothing must not pay for it."""
    run = single(8)
    assert run.trials._contest._start._kept is not None
    assert run.trials._contest._aside._kept is None


@pytest.mark.parametrize("options", [{"probe": None, "guard": None}, {"probe": None, "guard": None, "shadow": True}])
def test_candidates_need_trials(options: dict[str, Any]) -> None:
    """Without a measure the first would silently be loaded as if it were the best."""
    with pytest.raises(BadArgument, match="give probe= or guard="):
        Run({}, **options)


@pytest.mark.parametrize("policy", [FixedHorizon(8), BestAfterRecovery(FixedHorizon(8), shares=(1.0,))])
def test_one_candidate_is_a_single_jump(policy: Policy) -> None:
    """Nobody who names one horizon may see any difference."""
    run = Run({8: 1.0}, policy=policy).go(PERIOD + RECOVERY + AFTER)
    assert torch.equal(run.bits(), single(8).bits())
