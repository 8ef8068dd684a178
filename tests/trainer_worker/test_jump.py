"""`mode="jump"`: the published method."""

import time
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from small_runs import FULL, INTERVAL, ScriptedEndpoint, adam, flat, learner, make, network, nowcasts, plain, step

from protos.errors import Unavailable
from trainer_worker import BadArgument, Nowcast, Push
from trainer_worker.jump import paper_horizons

STEPS = 10 * FULL
WHOLE = Push(hold_norms=False)
SHIFT = 0.001


def shifting(**options: Any) -> ScriptedEndpoint:
    """Forecasts the last weights, moved by the same for each interval."""
    return ScriptedEndpoint(lambda states, horizon: states[-1] + SHIFT * horizon, **options)


def jumped(endpoint: ScriptedEndpoint, *, steps: int = STEPS, **options: Any) -> tuple[list[torch.Tensor], Nowcast]:
    """The weights after each step of a run."""
    model, optimizer = learner()
    seen = []
    with make(model, optimizer, endpoint, **{"mode": "jump", "max_steps": STEPS, "push": WHOLE, **options}) as nowcast:
        for index in range(steps):
            step(model, optimizer, index)
            seen.append(flat(model))
    return seen, nowcast


def test_the_papers_horizons() -> None:
    """Of the schedule the paper's figures hang on; section 4.2."""
    assert paper_horizons(10) == (40, 33, 26, 21, 16, 11, 8, 5, 3, 1)
    assert paper_horizons(1) == (40,)


def test_predicted_weights_are_loaded_at_once_every_five_intervals() -> None:
    """Weights other than the forecast's, or contexts that reach over a jump, are not the published method."""
    endpoint = shifting()
    seen, nowcast = jumped(endpoint)
    horizons = paper_horizons(10)[:-1]  # none at the last step, which no step would repair
    for period, horizon in enumerate(horizons, start=1):
        at = period * FULL
        torch.testing.assert_close(seen[at - 1], endpoint.sent[at] + SHIFT * horizon)
    assert [(event.step, event.outcome, event.horizon) for event in nowcast.events] == [
        (period * FULL, "jumped", horizon) for period, horizon in enumerate(horizons, start=1)
    ]
    assert max(endpoint.sent) == STEPS - FULL  # snapshots that no jump is left for are not sent
    assert endpoint.asked == [tuple(range(end - FULL + INTERVAL, end + 1, INTERVAL)) for end in range(FULL, STEPS, FULL)]
    assert endpoint.spec.mode == "jump"


def test_training_waits_for_the_forecast() -> None:
    """A jump that comes later is another method: it throws away what was trained meanwhile."""
    slow = shifting(fail=lambda call: call == "forecast" and time.sleep(0.005), local=False)  # a step would be made meanwhile
    _, nowcast = jumped(slow)
    assert [outcome for _, outcome, _ in nowcasts(nowcast)] == ["jumped"] * 9
    assert nowcast.summary()["waited_s"] > 0


def test_a_server_that_is_down_costs_jumps_alone() -> None:
    """The same steps as without."""
    seen, nowcast = jumped(shifting(fail=Mock(side_effect=Unavailable("gone")), local=False))
    assert nowcast.summary()["reasons"] == {"server_unavailable": 9}
    assert torch.equal(seen[-1], plain(STEPS))


def test_it_needs_the_runs_length() -> None:
    """The schedule spans the run; with another length it is another schedule."""
    model = network()
    with pytest.raises(BadArgument, match="pass the number of steps", check=lambda error: error.argument == "max_steps"):
        make(model, adam(model), shifting(), mode="jump", max_steps=None)
    assert make(model, adam(model), shifting(), mode="jump", max_steps=10_000, interval=None).summary()["interval"] == 200
