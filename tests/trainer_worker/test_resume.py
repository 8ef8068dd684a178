"""A run that is stopped and resumed."""

import io
from typing import Any

import pytest
import torch
from small_runs import CONTEXT, INTERVAL, PERIOD, ShiftingEndpoint, flat, network, step
from waiting import until

from trainer_worker import AdaptiveHorizon, BadArgument, Guard, Nowcast, WeightAverage

STEPS = 3 * PERIOD + 3


class Run:
    """A deterministic run with embedded forecasts, which can be written to bytes and read again."""

    def __init__(self, **options: Any) -> None:
        self.model = network()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        defaults = {"max_steps": STEPS, "interval": INTERVAL, "context": CONTEXT, "forecaster": "linear"}
        self.nowcast = Nowcast(self.model, self.optimizer, **{**defaults, **options})
        self.index = 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            step(self.model, self.optimizer, self.index)
            self.index += 1

    def save(self) -> bytes:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "index": self.index}
        file = io.BytesIO()
        torch.save({**state, "nowcast": self.nowcast.state_dict()}, file)
        return file.getvalue()

    def load(self, data: bytes) -> None:
        state = torch.load(io.BytesIO(data), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.index = state["index"]
        self.nowcast.load_state_dict(state["nowcast"])


@pytest.fixture(scope="module")
def unbroken() -> Run:
    """A run that was never stopped."""
    run = Run()
    with run.nowcast:
        run.train(STEPS)
    assert run.nowcast.summary()["nowcasts"]["accepted"] == 3
    return run


@pytest.mark.parametrize("stop", range(STEPS))
@pytest.mark.parametrize("entered", [False, True])
def test_resumed_runs_end_in_the_same_bits(unbroken: Run, stop: int, *, entered: bool) -> None:
    """A checkpoint that changes the run makes its results depend on where it was preempted."""
    first = Run()
    with first.nowcast:
        first.train(stop)
        saved = first.save()
    second = Run()
    if not entered:
        second.load(saved)
    with second.nowcast:
        if entered:
            second.load(saved)
        second.train(STEPS - stop)
    assert torch.equal(flat(second.model), flat(unbroken.model))
    mine, theirs = second.nowcast.summary(), unbroken.nowcast.summary()
    for counted in ("steps", "nowcasts", "reasons"):
        assert mine[counted] == theirs[counted]
    assert mine["snapshots"]["taken"] == theirs["snapshots"]["taken"]
    assert [event.step for event in second.nowcast.events] == [event.step for event in unbroken.nowcast.events]


def test_a_run_can_go_back_to_an_earlier_checkpoint() -> None:
    """Elastic trainers reload a checkpoint into the process that went on after it."""
    run = Run()
    with run.nowcast:
        run.train(PERIOD + 3)
        saved = run.save()
        run.train(PERIOD)
        after = flat(run.model)
        run.load(saved)
        run.train(PERIOD)
    assert torch.equal(flat(run.model), after)


def test_a_resumed_job_makes_the_server_forget() -> None:
    """Snapshots from before the checkpoint would contradict the ones that are taken again."""
    endpoint = ShiftingEndpoint()
    first = Run(server=endpoint)
    with first.nowcast:
        first.train(PERIOD + 3)
        saved = first.save()
        first.train(4)
        until(lambda: first.nowcast.in_flight == 0)
    assert max(endpoint.history) == PERIOD + 6
    second = Run(server=endpoint)
    second.load(saved)
    with second.nowcast:
        second.train(PERIOD - 3)
    assert sorted(endpoint.history) == list(range(PERIOD + INTERVAL, 2 * PERIOD + 1, INTERVAL))


@pytest.mark.parametrize(
    ("change", "word"), [({"version": 99}, "version"), ({"interval": 7}, "interval = 7"), ({"period": 9}, "period = 9")]
)
def test_a_state_of_another_run_is_refused(change: dict[str, Any], word: str) -> None:
    """A context of other steps would be forecast from as if it were this run's."""
    run = Run()
    with pytest.raises(BadArgument, match=word):
        run.nowcast.load_state_dict({**run.nowcast.state_dict(), **change})


def test_a_state_of_a_policy_that_learns_otherwise_is_refused() -> None:
    """It would end in a KeyError, with half of the state loaded."""
    bold, cautious = Run(policy=AdaptiveHorizon(), guard=Guard()), Run(guard=Guard())
    state = bold.nowcast.state_dict()
    with pytest.raises(BadArgument, match="AdaptiveHorizon, this one's as Cautious"):
        cautious.nowcast.load_state_dict(state)
    assert cautious.nowcast.step == 0


def test_a_state_of_a_trial_that_keeps_other_things_is_refused() -> None:
    """The rollback would find too much or too little to give back, and end the training."""
    first = Run(probe=lambda: 1.0)
    with first.nowcast:
        first.train(PERIOD + 1)
    second = Run(guard=Guard(also=(WeightAverage(network()),)), probe=lambda: 1.0)
    with pytest.raises(BadArgument, match=r"trial of 0 averages .* this run has 1"):
        second.nowcast.load_state_dict(first.nowcast.state_dict())
    assert second.nowcast.step == 0
