"""Horizons under a learning rate that changes."""

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_runs import ShiftingEndpoint, network, step
from torch.optim import lr_scheduler

from trainer_worker import BadArgument, FixedHorizon, Nowcast
from trainer_worker.rates import Rates

INTERVAL, CONTEXT, STEPS = 10, 5, 1000


def cosine(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / STEPS))


def stable_decay(step: int) -> float:
    """Warm-up of 50 steps, then stable, then linearly to 0 over the last 400."""
    return min(1.0, (step + 1) / 50, (STEPS - step) / 400)


def expected(factor: Callable[[int], float], step: int, horizon: int) -> int:
    """The rates of the window summed up, over the mean of the context's, in intervals."""
    context = [factor(at - 1) for at in range(step - (CONTEXT - 1) * INTERVAL, step + 1, INTERVAL)]  # step n used rate n - 1
    coming = sum(factor(min(at, STEPS)) for at in range(step, step + horizon * INTERVAL))
    return min(horizon, round(coming / INTERVAL / (sum(context) / len(context))))


def horizons(
    factor: Callable[[int], float], *, known: bool, every: int = 1, furthest: int = 40, wrap: Any = None
) -> dict[int, int]:
    """The horizon a run of `STEPS` asks for at each of its periods' ends; 0 where it asks for none."""
    model, endpoint = network(), ShiftingEndpoint(shift=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule: Any = lr_scheduler.LambdaLR(optimizer, lambda epoch: factor(epoch * every))
    if wrap:
        schedule = wrap(schedule)
    with Nowcast(
        model,
        optimizer,
        server=endpoint,
        max_steps=STEPS,
        interval=INTERVAL,
        context=CONTEXT,
        policy=FixedHorizon(furthest),
        lr_scheduler=schedule if known else None,
    ) as nowcast:
        for index in range(STEPS):
            optimizer.step()
            if (index + 1) % every == 0:
                schedule.step()
    asked = {at: horizon for at, (horizon,) in endpoint.asked}
    assert nowcast.summary()["reasons"].get("rate_spent", 0) == STEPS // (INTERVAL * CONTEXT) - 1 - len(asked)
    return asked


@pytest.mark.parametrize("factor", [cosine, stable_decay])
@pytest.mark.parametrize("chained", [False, True])
def test_a_known_schedule_is_looked_ahead_on(factor: Callable[[int], float], *, chained: bool) -> None:
    """At a decaying rate training never gets as far as the forecast: a jump of full length overshoots."""
    found = horizons(factor, known=True, wrap=(lambda inner: lr_scheduler.ChainedScheduler([inner])) if chained else None)
    for at in range(50, STEPS, 50):
        assert found.get(at, 0) == pytest.approx(expected(factor, at, 40), abs=1), at
    assert found[150] > 3 * found[850] > 0


def test_epochs_are_counted_as_the_loop_counts_them() -> None:
    """Schedulers are often stepped once an epoch; read as once a step they would be over before the run is."""
    each, epochs = horizons(cosine, known=True), horizons(cosine, known=True, every=25)
    assert all(abs(each.get(at, 0) - epochs.get(at, 0)) <= 4 for at in range(100, STEPS, 50))  # steps within an epoch are not seen


@pytest.mark.parametrize("factor", [cosine, stable_decay])
def test_an_unknown_schedule_is_drawn_on(factor: Callable[[int], float]) -> None:
    """Most loops hand over an optimizer only."""
    found = horizons(factor, known=False)
    for at in range(650, STEPS, 50):  # the decay of both is under way
        assert found.get(at, 0) == pytest.approx(expected(factor, at, 40), abs=4), at
    assert found[50] >= 39  # little or nothing has fallen yet


@pytest.mark.parametrize("known", [False, True])
def test_a_constant_rate_changes_nothing(*, known: bool) -> None:
    """The paper's schedule was tuned at one."""
    assert horizons(lambda _: 1.0, known=known) == dict.fromkeys(range(50, STEPS, 50), 40)


def test_looking_ahead_leaves_scheduler_and_optimizer_alone() -> None:
    """A look that moves the schedule would train at another rate than was asked for."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    warm = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=20)
    schedule = lr_scheduler.SequentialLR(optimizer, [warm, lr_scheduler.CosineAnnealingLR(optimizer, 80)], milestones=[20])
    rates = Rates(optimizer, schedule, interval=10, max_steps=100)
    for at in range(1, 41):
        step(model, optimizer, at)
        rates.begin(at)
        if at % 10 == 0:
            rates.note()
        schedule.step()
    before = (str(schedule.state_dict()), optimizer.param_groups[0]["lr"], warm.last_epoch)
    assert rates.shorten((40,), step=40)[0] < 10
    assert (str(schedule.state_dict()), optimizer.param_groups[0]["lr"], warm.last_epoch) == before


class Trainer:
    """Has a method for a schedule, and what cannot be copied, or must not be at every nowcast."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.model = network()
        self.loss = self.model(torch.randn(2, 8)).mean()  # with its graph
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.calls = 0

    def rate(self, epoch: int) -> float:
        return 0.9**epoch

    def __call__(self, epoch: int) -> float:
        self.calls += 1
        return self.rate(epoch)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Trainer":
        raise AssertionError


def looking_ahead(optimizer: torch.optim.Optimizer, schedule: lr_scheduler.LRScheduler, *, steps: int = 20) -> Rates:
    """Some steps into a run."""
    rates = Rates(optimizer, schedule, interval=10, max_steps=10_000)
    for at in range(1, steps + 1):
        optimizer.step()
        rates.begin(at)
        if at % 10 == 0:
            rates.note()
        schedule.step()
    return rates


@pytest.mark.parametrize("nested", ["", "chained", "sequential"])
@pytest.mark.parametrize("stateful", [False, True])
def test_a_trainer_whose_method_is_the_schedule_is_not_copied(nested: str, *, stateful: bool) -> None:
    """A lock in it would end the run at the first nowcast; a model in it would be there twice at each."""
    trainer = Trainer()
    optimizer = trainer.optimizer
    schedule: Any = lr_scheduler.LambdaLR(optimizer, trainer if stateful else trainer.rate)
    if nested == "chained":
        schedule = lr_scheduler.ChainedScheduler([schedule])
    elif nested == "sequential":
        schedule = lr_scheduler.SequentialLR(optimizer, [lr_scheduler.ConstantLR(optimizer, 1.0), schedule], milestones=[2])
    rates = looking_ahead(optimizer, schedule)
    calls = trainer.calls
    assert rates.shorten((40,), step=20) == ()  # 0.9 ** 10 an interval, and of a context already 3 times that: all is spent
    assert rates._scheduler is not None
    assert trainer.calls == calls  # a schedule that counts has not gone on


class Opaque(lr_scheduler.LRScheduler):
    """A user's own, with a file or a lock."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.lock = threading.Lock()
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        return [0.01 - 0.0001 * self.last_epoch]


def test_a_scheduler_that_cannot_be_copied_is_drawn_on(caplog: pytest.LogCaptureFixture) -> None:
    """Nowcasts are an aid: what they cannot see must not end the training, nor fill its log."""
    optimizer = torch.optim.SGD(network().parameters(), lr=0.01)
    rates = looking_ahead(optimizer, Opaque(optimizer))
    plain = Rates(optimizer, None, interval=10, max_steps=10_000)
    plain.load_state_dict(rates.state_dict())
    assert rates.shorten((5, 40), step=20) == plain.shorten((5, 40), step=20)
    assert rates.shorten((40,), step=20)[0] < 10
    assert len([record for record in caplog.records if "cannot be copied" in record.message]) == 1


def test_a_schedule_that_ends_stays_at_its_last_rate() -> None:
    """One-cycle schedules raise after their last step, and a nowcast may look further."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=60)
    rates = looking_ahead(optimizer, schedule, steps=50)
    assert sum(rates.shorten((500,), step=50)) <= 1


def test_schedulers_that_cannot_be_looked_ahead_on_are_refused() -> None:
    """Each would silently be taken for a constant rate."""
    model = network()
    optimizer, other = (torch.optim.SGD(model.parameters(), lr=0.01) for _ in range(2))
    for wrong, word in (
        (lr_scheduler.ReduceLROnPlateau(optimizer), "ReduceLROnPlateau"),
        (lr_scheduler.ConstantLR(other), "another optimizer"),
        (0.1, "float"),
    ):
        with pytest.raises(BadArgument, match=word) as caught:
            Nowcast(model, optimizer, server=ShiftingEndpoint(), max_steps=STEPS, lr_scheduler=wrong)  # type: ignore[arg-type]
        assert caught.value.argument == "lr_scheduler"
