"""What a gliding run does to its weights, with endpoints in this process."""

import math
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from small_runs import (
    FIRST,
    FULL,
    INTERVAL,
    STEPS,
    TAKEN_UP,
    UNHELD,
    Fails,
    ScriptedEndpoint,
    adam,
    flat,
    learner,
    make,
    network,
    nowcasts,
    onward,
    plain,
    settle,
    step,
    train,
)
from torch import Tensor, nn
from waiting import until

from protos.errors import DeadlineExceeded
from trainer_worker import Event, Nowcast, Push, boundary
from trainer_worker.boundary import EVERY, GROWTH, SHORTEST, default_interval
from trainer_worker.endpoints import sender
from trainer_worker.forecasts import REMEMBERED
from trainer_worker.push import CONTEXT, shape
from trainer_worker.weights import pushed
from trainer_worker.weights.flat import FlatParameters

LATE = DeadlineExceeded("the forecast was not there in time")


def glided(endpoint: ScriptedEndpoint, *, steps: int = STEPS, **options: Any) -> tuple[Tensor, Nowcast]:
    """The weights at the end of a run, and its nowcasts."""
    model, optimizer = learner()
    with make(model, optimizer, endpoint, **options) as nowcast:
        train(model, optimizer, range(steps))
    return flat(model), nowcast


def by_hand(steps: int, interval: int, *, gain: float) -> tuple[list[Tensor], dict[int, Tensor]]:
    """The weights after each step, and the snapshots, of a run that glides along `onward` without its norms held."""
    full = CONTEXT * interval
    model, optimizer = learner()
    pieces = FlatParameters(model, [optimizer]).pieces
    push: Tensor | None = None
    asked: Tensor | None = None
    snapshots: dict[int, Tensor] = {}
    seen = []
    for index in range(steps):
        step(model, optimizer, index)
        count = index + 1
        if push is not None and -count % interval % EVERY == 0:
            weights = flat(model) + push / math.ceil(interval / EVERY)
            torch.nn.utils.vector_to_parameters(weights, model.parameters())
        seen.append(flat(model))
        if count % interval == 0:
            push, asked = asked, None
            snapshots[count] = flat(model)
            if count >= full and count + interval < steps:
                states = [snapshots[at] for at in range(count - full + interval, count + 1, interval)]
                asked = shape(onward(states, 1), states, pieces, gain=gain, hold_norms=False)
    return seen, snapshots


@pytest.mark.parametrize("interval", [INTERVAL, EVERY + 2])
def test_a_run_glides_as_by_hand(interval: int) -> None:
    """A push that is too long, too late or begun at another step would make every figure of the project wrong."""
    endpoint, steps, full = ScriptedEndpoint(), 10 * interval + 3, CONTEXT * interval
    model, optimizer = learner()
    seen, snapshots = by_hand(steps, interval, gain=0.5)
    taken_up = list(range(full + interval, steps, interval))
    with make(model, optimizer, endpoint, push=UNHELD, interval=interval, max_steps=steps) as nowcast:
        for index in range(steps):
            step(model, optimizer, index)
            torch.testing.assert_close(flat(model), seen[index], rtol=1e-4, atol=1e-5)
        until(lambda: nowcast.in_flight == 0)
    assert sorted(endpoint.sent) == sorted(snapshots)
    asked = range(full, steps - interval, interval)
    assert endpoint.asked == [tuple(range(last - full + interval, last + 1, interval)) for last in asked]
    assert nowcasts(nowcast) == [(at, "glided", "") for at in taken_up]
    assert (flat(model) - plain(steps)).norm() > 0.1
    assert (endpoint.finished.step, endpoint.finished.used) == (steps, len(taken_up))


def with_delay(delay: int, interval: int, *, late: Sequence[int] = ()) -> tuple[Tensor, Nowcast]:
    """A run whose answers come so many steps after they were asked for; those of `late` right after their boundary."""
    gates = [threading.Event() for _ in range(60)]  # one for each request
    fails = Fails(forecast=gates)
    endpoint = ScriptedEndpoint(fail=fails, local=False)
    model, optimizer = learner()
    with make(model, optimizer, endpoint, interval=interval, max_steps=60) as nowcast:
        asked = asks = 0  # at this step, and how often
        for index in range(59):
            step(model, optimizer, index)
            if nowcast._boundaries._asking and nowcast.steps % interval == 0:
                if asked in late:
                    made = len(endpoint.asked)
                    gates[asks - 1].set()
                    until(lambda made=made: len(endpoint.asked) > made)  # type: ignore[misc]
                asked, asks = nowcast.steps, asks + 1
                until(lambda asks=asks: fails.begun.count("forecast") == asks)  # type: ignore[misc]  # else it would be given up
            if asked and nowcast.steps == asked + delay and asked not in late:
                gates[asks - 1].set()
                settle(nowcast)
    return flat(model), nowcast


@pytest.mark.parametrize("delay", [2, 3])
def test_when_an_answer_comes_within_its_interval_does_not_matter(delay: int) -> None:
    """A run could not be repeated: its weights would depend on the network's mood."""
    at_once, first = with_delay(0, 4)
    later, second = with_delay(delay, 4)
    assert torch.equal(at_once, later)
    assert nowcasts(first) == nowcasts(second)
    assert {outcome for _, outcome, _ in nowcasts(first)} == {"glided"}


def test_an_answer_that_misses_its_boundary_is_never_used() -> None:
    """Taken up an interval later, it would push along what was seen two intervals ago, at a moment that chance decides."""
    late = (24, 28, 40)
    missed, first = with_delay(1, 4, late=late)
    failing = Fails(forecast=[LATE if step in late else None for step in range(4 * CONTEXT, 60, 4)])
    failed, second = glided(ScriptedEndpoint(fail=failing), interval=4, max_steps=60, steps=59)
    assert torch.equal(missed, failed)
    assert [at for at, _, reason in nowcasts(first) if reason == "late"] == [at + 4 for at in late]
    assert nowcasts(first) == nowcasts(second)


def test_a_skipped_forecast_has_ended_the_push_when_it_is_told() -> None:
    """Who looks at the weights from `on_event` would take the push before for one that goes on."""
    told: list[tuple[str, bool]] = []
    model, optimizer = learner()

    def on_event(event: Event) -> None:
        told.append((event.outcome, nowcast.state_dict()["pushed"]["share"] > 0))

    nowcast = make(model, optimizer, ScriptedEndpoint(fail=Fails(forecast=[None, LATE])), on_event=on_event)
    with nowcast:
        train(model, optimizer, range(FIRST + 2 * INTERVAL + 1))
    assert told == [("glided", True), ("skipped", False), ("glided", True)]


def test_the_interval_doubles_where_forecasts_are_late_and_halves_where_they_are_in_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that needs longer than an interval would never be of use; one that was slow for a while, half as useful for good."""
    monkeypatch.setattr(boundary, "IN_TIME", 2)
    endpoint = ScriptedEndpoint(fail=Fails(forecast=3 * [LATE]))
    glided(endpoint, interval=1, max_steps=None, steps=30)
    doubled = [10, 12, 14, 16, 18]  # late at 6, 7 and 8, where the longer intervals begin; in time at 18, 20, 22 and 24
    sent = [step for step in sorted(endpoint.sent) if step <= 28]  # the last are on their way when the run ends
    assert sent == [*range(1, 9), *doubled, 20, 22, *range(24, 29)]
    assert endpoint.asked[0] == (8, 10, 12, 14, 16)
    glided(ScriptedEndpoint(fail=Fails(forecast=3 * [LATE])), interval=1, max_steps=None, steps=12)
    assert "3 skipped (3 late); they came late, so the interval grew to 2 steps" in caplog.text


def test_a_server_that_is_slow_for_long_costs_pushes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no row free a snapshot is missing: of a context with a gap, a push would be longer than the gain allows."""
    monkeypatch.setattr(boundary, "WIDEST", 1)  # the interval has grown as far as it may
    gate = threading.Event()
    endpoint = ScriptedEndpoint(fail=(fails := Fails(forecast=[gate])), local=False)
    model, optimizer = learner()
    with make(model, optimizer, endpoint, max_steps=200) as nowcast:
        train(model, optimizer, range(FULL))
        until(lambda: "forecast" in fails.begun)
        train(model, optimizer, range(FULL, FULL + 6 * INTERVAL))  # the first forecast is made all the while
        assert nowcast.summary()["snapshots"]["dropped"] > 0
        assert torch.equal(flat(model), plain(FULL + 6 * INTERVAL))
        gate.set()
        settle(nowcast)
        train(model, optimizer, range(FULL + 6 * INTERVAL, FULL + 16 * INTERVAL), nowcast)
    assert nowcast.summary()["nowcasts"]["used"] > 0
    assert all(context[-1] - context[0] == FULL - INTERVAL for context in endpoint.asked)


def test_a_loop_that_runs_on_is_not_pushed_for_ever() -> None:
    """The last push would be added at every further step: a drift that nothing corrects."""
    model, endpoint = network(), ScriptedEndpoint()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with make(model, optimizer, endpoint) as nowcast:
        train(model, optimizer, range(STEPS + 1))
        before = flat(model)
        optimizer.param_groups[0]["lr"] = 0.0
        train(model, optimizer, range(4 * INTERVAL))
    assert torch.equal(flat(model), before)
    assert max(at for at, _, _ in nowcasts(nowcast)) < STEPS
    assert nowcast.steps == STEPS + 1 + 4 * INTERVAL


def test_a_layer_frozen_in_mid_run_stays_as_it_is_from_the_next_step() -> None:
    """Who freezes a layer means it at once, not at the end of the interval."""
    model, optimizer = learner()
    with make(model, optimizer, ScriptedEndpoint(), interval=2 * EVERY, max_steps=100):
        train(model, optimizer, range(6 * 2 * EVERY + 1))
        model[0].requires_grad_(False)
        frozen, other = model[0].weight.clone(), model[2].weight.detach().clone()
        optimizer.param_groups[0]["lr"] = 0.0
        train(model, optimizer, range(EVERY))
        assert not torch.equal(model[2].weight, other)  # the push goes on
        train(model, optimizer, range(EVERY, 8 * EVERY))
    assert torch.equal(model[0].weight, frozen)


@pytest.mark.parametrize("change", ["unfrozen", "replaced", "reshaped"])
def test_other_trained_parameters_are_noticed_and_told_once(change: str, caplog: pytest.LogCaptureFixture) -> None:
    """Fine-tuning that unfreezes layer after layer would glide with its head alone to the end; a head that grows would end it."""
    model, endpoint = network(), ScriptedEndpoint()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if change == "reshaped" else adam(model)
    if change == "unfrozen":
        model[0].requires_grad_(False)
    with make(model, optimizer, endpoint, max_steps=100) as nowcast:
        train(model, optimizer, range(FIRST + 1))
        if change == "unfrozen":
            model[0].requires_grad_(True)
        elif change == "reshaped":
            for parameter in model[2].parameters():
                parameter.grad, parameter.data = None, torch.cat([parameter.data, -parameter.data])
        else:
            model[2] = nn.Linear(16, 2)
            optimizer.add_param_group({"params": list(model[2].parameters())})
        train(model, optimizer, range(FIRST + 1, 3 * FIRST))
        used = nowcast.summary()["nowcasts"]["used"]
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        before = flat(model)
        train(model, optimizer, range(INTERVAL))
    noticed = FIRST + INTERVAL
    contexts = [context for context in endpoint.asked if context[-1] > noticed]
    assert contexts[0] == tuple(range(noticed + INTERVAL, noticed + FULL + INTERVAL, INTERVAL))
    assert endpoint.sent[contexts[0][0]].numel() == before.numel()
    assert ((flat(model) - before).abs() > 0).float().mean() > 0.9  # nowcast from then on
    assert used > 1
    assert [record.message for record in caplog.records if "trained parameters changed" in record.message or record.exc_info] == [
        f"{nowcast.job}: the set of trained parameters changed at step {noticed}: starting a new context"
    ]


def test_a_new_context_waits_for_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer that fine-tuning unfreezes would cost seconds while the server hangs: for the old context, and for the new one."""
    monkeypatch.setattr(sender, "OPEN_S", 20.0)
    monkeypatch.setattr(sender, "STOP_S", 20.0)
    answering = threading.Event()
    answering.set()
    model = network()
    model[0].requires_grad_(False)
    optimizer, endpoint = adam(model), ScriptedEndpoint(fail=lambda _: answering.wait(60), local=False)
    with make(model, optimizer, endpoint, max_steps=100) as nowcast:
        train(model, optimizer, range(FULL))
        answering.clear()
        model[0].requires_grad_(True)
        begun = time.monotonic()
        train(model, optimizer, range(FULL, FULL + INTERVAL))
        waited_s = time.monotonic() - begun
        assert nowcast.summary()["parameters"] == flat(model).numel()
        answering.set()
    assert waited_s < 15


def test_parameters_that_cannot_be_nowcast_do_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """An exception out of `optimizer.step()`, because all layers are frozen for a while, ends a training run of days; or a server
    holds memory for a job that has ended.
    """
    (model, optimizer), endpoint = learner(), ScriptedEndpoint()
    with make(model, optimizer, endpoint) as nowcast:
        train(model, optimizer, range(FULL))
        model.requires_grad_(False)
        for _ in range(2 * INTERVAL):
            optimizer.step()
    assert nowcast.steps == FULL + INTERVAL
    assert "training continues without" in caplog.text
    assert endpoint.finished is not None


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (pushed, "part_of", torch.OutOfMemoryError("on the device")),
        (pushed, "copies_of_weights", AttributeError("of an optimizer's odd state")),
        (torch, "empty", MemoryError("on the host")),
    ],
    ids=["device", "optimizer", "host"],
)
def test_a_push_that_cannot_be_made_is_skipped(place: Any, name: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that just fits into its memory would end after 5% of its steps, when the first push is made."""
    model, optimizer = learner()
    real, errors = getattr(place, name), [error]

    def once(*given: Any, **options: Any) -> Any:
        if errors and (place is pushed or given == (1, flat(model).numel())):
            raise errors.pop()
        return real(*given, **options)

    with make(model, optimizer, ScriptedEndpoint()) as nowcast:
        monkeypatch.setattr(place, name, once)
        train(model, optimizer, range(STEPS))
    first, *others = TAKEN_UP
    assert nowcasts(nowcast) == [(first, "skipped", "worker_error"), *((at, "glided", "") for at in others)]


def test_a_parameter_that_cannot_be_forecast_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Warned of at every boundary, it would fill the log; it is left to the optimizer, and the others glide."""
    model = network()
    model[2].phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    model[2].register_forward_hook(lambda layer, _, out: out * layer.phase.abs())
    optimizer = adam(model)
    with make(model, optimizer, ScriptedEndpoint()) as nowcast:
        train(model, optimizer, range(STEPS))
    assert nowcast.summary()["nowcasts"]["used"] == len(TAKEN_UP)
    assert sum("cannot be forecast" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(("max_steps", "interval"), [(100, 8), (1600, 8), (10_000, 50)])
def test_a_short_runs_interval_is_not_too_short(max_steps: int, interval: int) -> None:
    """Over two or three steps Adam's own momentum and noise are much of what moves: on batch normalisation pushes did harm."""
    assert default_interval(max_steps) == interval


def test_without_the_runs_length_the_interval_grows_and_contexts_stay_nearly_even() -> None:
    """A context of uneven distances is none that any forecaster was fitted to."""
    endpoint = ScriptedEndpoint()
    model = network()
    with make(model, adam(model), endpoint, max_steps=None, interval=None, push=Push(gain=0.0)) as nowcast:
        for _ in range(4000):
            nowcast.step()
            until(lambda: nowcast.in_flight == 0)
    taken = sorted(endpoint.sent)
    assert taken[:3] == [SHORTEST, 2 * SHORTEST, 3 * SHORTEST]
    assert nowcast.summary()["interval"] == 4000 // GROWTH
    for context in zip(*(taken[start:] for start in range(CONTEXT)), strict=False):
        gaps = [later - earlier for earlier, later in pairwise(context)]
        assert max(gaps) <= min(gaps) + 2
    assert nowcasts(nowcast) == []  # of gain 0 nothing is asked for


def test_what_a_run_tells_of_its_progress() -> None:
    """Pages and reports show loss, gain and coherence; of another interval's push they would say the opposite of what happened."""
    drift = torch.linspace(-1, 1, flat(network()).numel()).sign()  # even as it is
    model, endpoint = network(), ScriptedEndpoint(lambda states, _: states[-1] + drift)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sizes = [parameter.numel() for parameter in model.parameters()]
    for parameter, part in zip(model.parameters(), drift.split(sizes), strict=True):
        parameter.register_hook(lambda gradient, part=part: -part.view_as(gradient))  # moves along `drift`, but for
    weights = [flat(model)]
    with make(model, optimizer, endpoint, push=UNHELD) as nowcast:
        for index in range(STEPS):
            nowcast.observe(torch.full((3,), 200.0 + index, dtype=torch.bfloat16))  # whose sums of two need 9 bits
            if index in (FIRST, FIRST + 1):
                optimizer.param_groups[0]["lr"] = -0.05  # the interval of the first push
            step(model, optimizer, index)
            optimizer.param_groups[0]["lr"] = 0.1
            weights.append(flat(model))
            until(lambda: nowcast.in_flight == 0)
    told = {progress.step: progress for progress in endpoint.told}
    assert [told[at].coherence for at in (FULL, FIRST)] == [None, None]
    assert told[FIRST + INTERVAL].coherence == pytest.approx(-1, abs=1e-3)
    assert told[FIRST + 2 * INTERVAL].coherence == pytest.approx(1, abs=1e-3)
    assert [told[at].gain for at in (FULL, FIRST)] == [0.0, 0.5]
    braked = [told[FIRST + intervals * INTERVAL].gain for intervals in (1, 2, 3)]
    assert braked == pytest.approx([0.5, 0.5 * (1 - 2.5 / REMEMBERED), 0.5], abs=1e-3)  # training took the first push back
    newest, taken_up = FIRST + INTERVAL, FIRST + 2 * INTERVAL
    moved = (weights[newest] - weights[newest - (CONTEXT - 1) * INTERVAL]) / (CONTEXT - 1)
    pushed = weights[taken_up + INTERVAL] - weights[taken_up] - INTERVAL * 0.1 * drift
    torch.testing.assert_close(pushed, braked[1] * moved, rtol=1e-3, atol=1e-5)
    assert told[FIRST].loss == pytest.approx(FIRST + 198.5)  # the mean of its interval's two
    assert told[INTERVAL].loss == pytest.approx(INTERVAL / 2 + 199.5)  # long before anything is asked for
    assert told[FIRST].layers is None
    layers = endpoint.finished.layers or {}
    assert set(layers) == {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert all(0 < value < 0.99 for value in layers.values())  # one of the pushes was taken back
    assert told[FIRST].max_steps == STEPS


def test_constraints_of_the_users_hold_after_a_push() -> None:
    """Weights that have to be small would be too large in the next forward pass, for a hook of the user's that came too early."""
    model, optimizer = learner()

    def constrain(*_: Any) -> None:
        with torch.no_grad():
            model[2].weight.clamp_(-0.125, 0.125)

    optimizer.register_step_post_hook(constrain)
    with make(model, optimizer, ScriptedEndpoint(), push=UNHELD) as nowcast:
        for index in range(STEPS):
            step(model, optimizer, index)
            assert float(model[2].weight.abs().max()) <= 0.125
    assert nowcast.summary()["nowcasts"]["used"] == len(TAKEN_UP)
