"""Forecasts that training does not wait for: overlap and shadow mode."""

import copy
import io
import threading
from typing import Any

import pytest
import torch
from small_runs import WHOLE, ShiftingEndpoint, flat, network, step
from waiting import until

from trainer_worker import BadArgument, FixedHorizon, Guard, Nowcast

INTERVAL, CONTEXT = 8, 3
PERIOD = INTERVAL * CONTEXT
STEPS = 2 * PERIOD + INTERVAL


class Gated:
    """Holds every forecast back until it is let go; `arrived` waits until the run could see it."""

    def __init__(self, shift: float = 0.01) -> None:
        self.gate = threading.Event()
        self.endpoint = ShiftingEndpoint(shift, fail=lambda call: self.gate.wait() if call == "forecast" else None)

    def arrive(self, nowcast: Nowcast) -> None:
        """Let the forecast go, and wait until it is there."""
        pending = nowcast._cycle._candidates.pending
        assert pending is not None
        assert pending.request is not None
        self.gate.set()
        assert pending.request.done.wait(10)
        self.gate.clear()


def start(gated: Gated, **options: Any) -> tuple[Any, torch.optim.Optimizer, Nowcast]:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    timing = {"max_steps": STEPS, "interval": INTERVAL, "context": CONTEXT}
    defaults = {**timing, "policy": FixedHorizon(3), "jump": WHOLE, "overlap": True}
    return model, optimizer, Nowcast(model, optimizer, server=gated.endpoint, **{**defaults, **options})


@pytest.mark.parametrize("late", [1, 3, INTERVAL - 1])
def test_what_arrives_late_is_added_as_a_displacement(late: int) -> None:
    """Loading the forecast itself would undo the steps that were taken while it was made."""
    gated = Gated()
    model, optimizer, nowcast = start(gated)
    plain = network()
    other = torch.optim.Adam(plain.parameters(), lr=1e-2)
    with nowcast:
        for index in range(PERIOD + late - 1):
            step(model, optimizer, index)
            step(plain, other, index)
        assert torch.equal(flat(model), flat(plain))  # training went on as if nothing were under way
        gated.arrive(nowcast)
        step(model, optimizer, PERIOD + late - 1)
        step(plain, other, PERIOD + late - 1)
        displacement = (gated.endpoint.sent[PERIOD] + 0.01 * 3) - gated.endpoint.sent[PERIOD]
        assert torch.equal(flat(model), flat(plain) + displacement)
        (event,) = nowcast.events
        assert (event.step, event.outcome, event.horizon) == (PERIOD, "accepted", 3)
        for index in range(PERIOD + late, PERIOD + INTERVAL):
            step(model, optimizer, index)
        gated.gate.set()
        until(lambda: PERIOD + INTERVAL in gated.endpoint.sent)
    assert max(gated.endpoint.sent) == PERIOD + INTERVAL  # the next context begins where it would have


def test_what_does_not_arrive_before_the_next_snapshot_is_skipped() -> None:
    """A context that holds a jump in its middle forecasts the jump."""
    gated = Gated()
    model, optimizer, nowcast = start(gated)
    plain = network()
    other = torch.optim.Adam(plain.parameters(), lr=1e-2)
    with nowcast:
        for index in range(PERIOD + INTERVAL):
            step(model, optimizer, index)
            step(plain, other, index)
        gated.gate.set()
    assert torch.equal(flat(model), flat(plain))
    assert [(event.step, event.reason) for event in nowcast.events] == [(PERIOD, "timeout")]
    assert nowcast.summary()["waited_s"] < 1.0


def test_a_given_up_answer_is_never_mistaken_for_the_next() -> None:
    """The forecast of the last period, loaded in this one, would throw the run back by a period."""
    gated = Gated()
    model, optimizer, nowcast = start(gated, max_steps=3 * PERIOD)
    with nowcast:
        for index in range(PERIOD + INTERVAL + 1):
            step(model, optimizer, index)
        gated.gate.set()  # too late
        for index in range(PERIOD + INTERVAL + 1, 2 * PERIOD):
            step(model, optimizer, index)
        pending = nowcast._cycle._candidates.pending
        assert pending is not None
        assert pending.request is not None
        pending.request.done.wait(10)
        before = flat(model)
        step(model, optimizer, 2 * PERIOD)
        assert (flat(model) - before).median() > 0.01
    assert gated.endpoint.asked == [(PERIOD, (3,)), (2 * PERIOD, (3,))]
    assert [event.outcome for event in nowcast.events] == ["skipped", "accepted"]


def test_a_run_resumes_while_a_forecast_is_under_way() -> None:
    """A preemption between question and answer must cost at most the waiting, not the nowcast."""
    gated = Gated()
    model, optimizer, nowcast = start(gated)
    file = io.BytesIO()
    with nowcast:
        for index in range(PERIOD + 2):
            step(model, optimizer, index)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "nowcast": nowcast.state_dict()}, file)
        gated.gate.set()
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = Gated()
    model, optimizer, nowcast = start(other)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    nowcast.load_state_dict(state["nowcast"])
    with nowcast:
        step(model, optimizer, PERIOD + 2)
        other.arrive(nowcast)
        step(model, optimizer, PERIOD + 3)
    assert other.endpoint.asked == [(PERIOD, (3,))]
    assert [(event.step, event.outcome) for event in nowcast.events] == [(PERIOD, "accepted")]


@pytest.mark.parametrize("mode", ["overlap", "shadow"])
def test_a_run_that_waits_does_not_take_up_what_another_mode_asked_for(mode: str) -> None:
    """It would load the forecast as it is, and undo the steps since it was asked for."""
    gated = Gated()
    model, optimizer, nowcast = start(gated, **{"overlap": False, mode: True})
    with nowcast:
        for index in range(PERIOD + 2):
            step(model, optimizer, index)
        state = nowcast.state_dict()
        gated.gate.set()
    endpoint = ShiftingEndpoint()
    options = {"max_steps": 3 * PERIOD, "interval": INTERVAL, "context": CONTEXT, "policy": FixedHorizon(3), "jump": WHOLE}
    with Nowcast(model, optimizer, server=endpoint, **options) as nowcast:  # type: ignore[arg-type]
        nowcast.load_state_dict(state)
        plain = copy.deepcopy(model)
        other = torch.optim.Adam(plain.parameters())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for index in range(PERIOD + 2, 2 * PERIOD):
            assert torch.equal(flat(model), flat(plain))
            step(model, optimizer, index)
            step(plain, other, index)
    assert endpoint.asked == [(2 * PERIOD, (3,))]
    assert [(event.step, event.outcome) for event in nowcast.events] == [(2 * PERIOD, "accepted")]


def test_a_late_jump_is_tried_as_well() -> None:
    """Overlap and trial together are what a production run wants; the rollback goes to where the jump was made."""
    gated = Gated(shift=0.05)
    losses = {"now": 1.0}
    model, optimizer, nowcast = start(gated, probe=lambda: losses["now"], guard=Guard(recovery=4))
    with nowcast:
        for index in range(PERIOD + 2):
            step(model, optimizer, index)
        gated.arrive(nowcast)
        plain = network()
        plain.load_state_dict(model.state_dict())
        other = torch.optim.Adam(plain.parameters())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        step(plain, other, PERIOD + 2)
        step(model, optimizer, PERIOD + 2)
        assert not torch.equal(flat(model), flat(plain))
        losses["now"] = 1.05  # too much, and not beyond hope
        for index in range(PERIOD + 3, PERIOD + 7):
            step(model, optimizer, index)
        assert torch.equal(flat(model), flat(plain))
        gated.gate.set()
    assert [(event.step, event.outcome, event.cost_steps) for event in nowcast.events] == [(PERIOD, "rejected", 4)]


@pytest.mark.parametrize(("tried", "left"), [(False, 0), (False, 1), (True, 3), (True, 4)])
def test_what_comes_too_late_in_the_run_is_not_loaded(*, tried: bool, left: int) -> None:
    """The run would end in the spike after a jump: one that no step repairs, or that nobody judges any more."""
    gated = Gated()
    options = {"probe": lambda: 1.0, "guard": Guard(recovery=4)} if tried else {}
    model, optimizer, nowcast = start(gated, max_steps=PERIOD + 4 + left, **options)
    with nowcast:
        for index in range(PERIOD + 3):
            step(model, optimizer, index)
        gated.arrive(nowcast)
        for index in range(PERIOD + 3, PERIOD + 4 + left):
            step(model, optimizer, index)
        gated.gate.set()
    in_time = left == 4 if tried else left == 1
    expected = ("accepted", "") if in_time else ("skipped", "no_time_to_recover")
    assert [(event.outcome, event.reason) for event in nowcast.events] == [expected]


def test_shadow_mode_changes_nothing() -> None:
    """A trial without risk has to be one: the same weights, bit for bit."""
    gated = Gated()
    gated.gate.set()
    model, optimizer, nowcast = start(gated, overlap=False, shadow=True)
    plain = network()
    other = torch.optim.Adam(plain.parameters(), lr=1e-2)
    with nowcast:
        for index in range(STEPS):
            step(model, optimizer, index)
            step(plain, other, index)
            pending = nowcast._cycle._candidates.pending
            if pending is not None and pending.request is not None:
                pending.request.done.wait(10)
    assert torch.equal(flat(model), flat(plain))
    assert gated.endpoint.asked == [(PERIOD, (3,)), (2 * PERIOD, (3,))]
    assert nowcast.summary()["reasons"] == {"shadow": 2}
    assert [outcome.reason for outcome in gated.endpoint.outcomes] == ["shadow", "shadow"]


@pytest.mark.parametrize(
    ("options", "argument"), [({"overlap": True, "shadow": True}, "shadow"), ({"overlap": True, "interval": 1}, "interval")]
)
def test_modes_that_contradict_each_other(options: dict[str, Any], argument: str) -> None:
    """One of the two would silently win."""
    with pytest.raises(BadArgument) as caught:
        start(Gated(), **options)
    assert caught.value.argument == argument
