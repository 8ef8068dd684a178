"""Jumps as trials: verdicts, exact rollback, what it may cost."""

import io
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from small_runs import CONTEXT, WHOLE, ShiftingEndpoint, flat
from torch import nn
from torch.nn import functional

from trainer_worker import BadArgument, BestAfterRecovery, FixedHorizon, Guard, Nowcast
from trainer_worker.trials.gauge import Gauge
from trainer_worker.trials.guard import stretch_steps
from trainer_worker.trials.kept import KeptState
from trainer_worker.weights.distributed import Ranks

INTERVAL = 4
PERIOD = CONTEXT * INTERVAL
RECOVERY = 4


class Run:
    """A run whose batches and dropout come from torch's global random state, which a rollback has to restore as well."""

    def __init__(self, endpoint: Any, *, max_steps: int = 1000, optimizer: str = "AdamW", **options: Any) -> None:
        torch.manual_seed(7)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
        self.optimizer = getattr(torch.optim, optimizer)(self.model.parameters(), lr=1e-2)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 500)
        self.nowcast = None
        if endpoint is not None:
            defaults = {"interval": INTERVAL, "context": CONTEXT, "policy": FixedHorizon(8)}
            guard = Guard(recovery=RECOVERY, also=(self.schedule,))
            options = {**defaults, "guard": guard, "probe": self.held, "server": endpoint, **options}
            self.nowcast = Nowcast(self.model, self.optimizer, max_steps=max_steps, **options)

    def held(self) -> float:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(256, 8, generator=generator)
        torch.rand(1)  # a probe may draw numbers
        trials = self.nowcast and self.nowcast._cycle._trials
        trial = trials._trial if trials else None
        penalty = 9.0 if trial and self.nowcast and self.nowcast.step - trial.step == RECOVERY else 0.0  # no jump is good enough
        return penalty + float(functional.cross_entropy(self.model(inputs), (inputs.sum(1) > 0).long()))

    def train(self, steps: int) -> None:
        for _ in range(steps):
            inputs = torch.randn(32, 8)
            self.optimizer.zero_grad()
            loss = functional.cross_entropy(self.model(inputs), (inputs.sum(1) > 0).long())
            loss.backward()
            if self.nowcast is not None:
                self.nowcast.observe(loss)
            self.optimizer.step()
            self.schedule.step()

    def bits(self) -> torch.Tensor:
        buffers = [buffer.double().reshape(-1) for buffer in self.model.buffers()]
        return torch.cat([flat(self.model).double(), *buffers, torch.get_rng_state().double()])


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Adagrad", "RMSprop", "NAdam", "Adafactor"])
def test_after_a_rollback_the_run_is_what_it_would_have_been(optimizer: str) -> None:
    """A trial that leaves a trace, in a moment, a running mean, a schedule or a random number, is not free of risk."""
    plain, tried = Run(None, optimizer=optimizer), Run(ShiftingEndpoint(shift=0.01), optimizer=optimizer)
    torch.manual_seed(1)
    plain.train(PERIOD + 30)
    torch.manual_seed(1)
    assert tried.nowcast is not None
    with tried.nowcast:
        tried.train(PERIOD + RECOVERY)
        (event,) = tried.nowcast.events
        assert (event.outcome, event.reason, event.cost_steps) == ("rejected", "hopeless", RECOVERY)
        tried.train(30)
    assert torch.equal(tried.bits(), plain.bits())
    assert tried.schedule.last_epoch == plain.schedule.last_epoch


@pytest.mark.parametrize("stop", range(PERIOD - 2, PERIOD + RECOVERY + 3))
def test_a_run_resumes_in_the_middle_of_a_trial(stop: int) -> None:
    """A preemption during the recovery window would otherwise keep the jump, whatever it did."""
    unbroken, first, second = (Run(ShiftingEndpoint(shift=0.01)) for _ in range(3))
    assert unbroken.nowcast is not None
    assert first.nowcast is not None
    assert second.nowcast is not None
    torch.manual_seed(1)
    with unbroken.nowcast:
        unbroken.train(PERIOD + 20)
    file = io.BytesIO()
    torch.manual_seed(1)
    with first.nowcast:
        first.train(stop)
        states = {name: getattr(first, name).state_dict() for name in ("model", "optimizer", "schedule", "nowcast")}
        torch.save({**states, "random": torch.get_rng_state()}, file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    for name in ("model", "optimizer", "schedule", "nowcast"):
        getattr(second, name).load_state_dict(states[name])
    torch.set_rng_state(states["random"])
    with second.nowcast:
        second.train(PERIOD + 20 - stop)
    assert torch.equal(second.bits(), unbroken.bits())
    assert second.nowcast.summary()["nowcasts"] == unbroken.nowcast.summary()["nowcasts"] == {
        "accepted": 0, "rejected": 1, "skipped": 0,
    }  # fmt: skip


class Scripted:
    """A probe that gives the loss a script has for the step."""

    def __init__(self, loss: Callable[[int, int | None], float]) -> None:
        self.loss = loss
        self.nowcast: Nowcast | None = None
        self.jump: int | None = None

    def __call__(self) -> float:
        assert self.nowcast is not None
        jumped = self.nowcast._cycle._trials
        under_way = jumped is not None and jumped._trial is not None
        since = self.nowcast.step - jumped._trial.step if jumped is not None and jumped._trial is not None else None
        return self.loss(self.nowcast.step, since if under_way else None)


def play(loss: Callable[[int, int | None], float], *, steps: int, guard: Guard | None = None, **options: Any) -> Nowcast:
    """A run of `steps` steps that change nothing, with a scripted loss (step, steps since the jump under trial)."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = Scripted(loss)
    defaults = {"interval": INTERVAL, "context": CONTEXT, "policy": FixedHorizon(8), "max_steps": steps}
    guard = guard or Guard(recovery=RECOVERY)
    probe.nowcast = Nowcast(model, optimizer, server=ShiftingEndpoint(), probe=probe, guard=guard, **{**defaults, **options})
    with probe.nowcast:
        for _ in range(steps):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    return probe.nowcast


def curve(step: int) -> float:
    """A training curve."""
    return 2.0 * step**-0.2


def nowcasts(nowcast: Nowcast) -> Iterator[tuple[int, str, str]]:
    return ((event.step, event.outcome, event.reason) for event in nowcast.events if event.kind == "nowcast")


def test_a_jump_that_looks_bad_at_first_is_accepted_once_it_has_recovered() -> None:
    """The measured jumps start at up to three times the loss; judging them at once throws the gain away."""

    def spike(step: int, since: int | None) -> float:
        return curve(step) * (1.0 if since is None else 0.97 + 0.7 * 2 ** (-since / 2))

    assert next(nowcasts(play(spike, steps=3 * PERIOD)))[1] == "rejected"  # in a window of four steps it is still high
    patient = play(spike, steps=3 * PERIOD, guard=Guard(recovery=16))
    assert next(nowcasts(patient)) == (PERIOD, "accepted", "")
    event = patient.events[0]
    assert event.loss is not None
    assert event.expected_loss is not None
    assert event.loss < event.expected_loss


@pytest.mark.parametrize(
    ("context", "candidates", "intervals"), [(5, 1, 2), (9, 1, 2), (4, 1, 1), (3, 1, 1), (5, 2, 1), (5, 3, 1), (9, 2, 2), (9, 3, 2)]
)
def test_a_jump_has_two_intervals_where_they_fit(context: int, candidates: int, intervals: int) -> None:
    """Three intervals of the next period are for its course; of several candidates' windows all but one are undone."""
    period = context * INTERVAL
    nowcast = play(
        lambda step, since: curve(step) if since is None else 1.09 * curve(period + since),
        steps=2 * period,
        guard=Guard(budget=1.0),
        context=context,
        policy=BestAfterRecovery(FixedHorizon(8), shares=(1.0, 0.5, 0.25)[:candidates]),
    )
    assert next(nowcasts(nowcast)) == (period, "rejected", "not_recovered")
    assert nowcast.summary()["cost_steps"] == candidates * intervals * INTERVAL


@pytest.mark.parametrize(
    ("recovery", "late", "outcome", "judged"),
    [(12, 0, "accepted", 6), (12, 6, "accepted", 6), (12, 7, "accepted", 12), (12, 13, "rejected", 12), (7, 0, "accepted", 7)],
)
def test_a_jump_that_is_back_is_not_kept_waiting(recovery: int, late: int, outcome: str, judged: int) -> None:
    """It may be back by the middle of the window; one that is not has all of it."""
    asked: list[int] = []

    def loss(step: int, since: int | None) -> float:
        asked.append(since or 0)
        return curve(step) * (1.0 if since is None else 0.98 if since >= late else 1.09)

    nowcast = play(loss, steps=2 * PERIOD, guard=Guard(recovery=recovery))
    assert next(nowcasts(nowcast))[1] == outcome
    assert max(asked) == judged


def test_a_spike_is_no_verdict() -> None:
    """nino-base's first jump on FM-16 stands at 6.5 times the loss, 1.5 times an untrained network's; 60 steps on it is ahead."""

    def spike(step: int, since: int | None) -> float:
        return curve(step) * (1.0 if since is None else 6.5 if since == 0 else 0.95 + 0.5 * 2 ** (-since / 2))

    nowcast = play(spike, steps=2 * PERIOD, guard=Guard(recovery=16))
    assert next(nowcasts(nowcast)) == (PERIOD, "accepted", "")


def swinging(step: int) -> float:
    """How far a weight is from its course: nothing in the mean over two steps, as far as the course is high in each."""
    return (-1.0) ** step


@pytest.mark.parametrize(("jump", "outcome"), [(0.0, "accepted"), (0.1, "rejected")])
def test_a_run_is_judged_by_its_averages(jump: float, outcome: str) -> None:
    """The loss of single weights scatters so far that neither good nor bad jumps could be told; at a high rate, or with batch
    normalisation, all would be undone.
    """
    model = nn.Linear(1, 1, bias=False).double()
    model.norm = nn.BatchNorm1d(1, dtype=torch.float64)
    model.norm.requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    looks: list[float] = []

    def probe() -> float:
        looks.append(float((model.weight.detach() - 1).abs() + model.norm.running_mean.abs()))
        return 1 + looks[-1]

    options: dict[str, Any] = {
        "interval": INTERVAL,
        "policy": FixedHorizon(1),
        "max_steps": 99,
        "jump": WHOLE,
        "guard": Guard(recovery=16),
    }
    with Nowcast(model, optimizer, server=ShiftingEndpoint(shift=jump), probe=probe, **options) as nowcast:
        weight = 1.0
        for step in range(1, PERIOD + 16 + 1):
            nn.init.constant_(model.weight, weight + swinging(step))
            model.norm.running_mean.fill_(5 * swinging(step))
            before = model.weight.item()
            model(torch.ones(1, 1, dtype=torch.float64)).sum().backward()
            optimizer.step()
            weight += model.weight.item() - before  # the jump
    assert [event.outcome for event in nowcast.events] == [outcome]
    levels = looks[1 : 1 + PERIOD // (INTERVAL // 2)]  # after that of the first step
    assert max(levels) < 1e-6


@pytest.mark.parametrize("outcome", ["accepted", "rejected"])
@pytest.mark.parametrize("buffer", [torch.full((2,), -math.inf), torch.zeros(1).expand(3), torch.eye(2).to_sparse()])
def test_buffers_that_are_no_statistics_are_let_be(buffer: torch.Tensor, outcome: str) -> None:
    """The mean of a causal mask is NaN, and no jump would be made; that of a sparse adjacency stops the training, and so does
    writing to an expanded tensor.
    """
    model = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    model[1].register_buffer("other", buffer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options: dict[str, Any] = {"interval": INTERVAL, "policy": FixedHorizon(1), "max_steps": 99, "guard": Guard(RECOVERY)}

    def probe() -> torch.Tensor:
        behind = 9 if outcome == "rejected" and run._cycle._trials._trial else 0  # type: ignore[union-attr]
        return model(torch.ones(1, 2)).sum() + model[1].other.to_dense().exp().sum() + behind

    with Nowcast(model, optimizer, server=ShiftingEndpoint(shift=0.0), probe=probe, **options) as run:
        for _ in range(PERIOD + RECOVERY):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert [event.outcome for event in run.events] == [outcome]
    assert torch.equal(model[1].other.to_dense(), buffer.to_dense())


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(
    ("interval", "recovery"),
    [(8, 8), (8, 24), (2, 9), (8, 7), (9, 5), (1, 4), (8, 10), (8, 19), (9, 18), (6, 12), (5, 17), (3, 6)],
)
def test_what_is_compared_is_as_long(interval: int, recovery: int, behind: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    """The loss of a longer average is lower: a jump would win by the measure, or a stump of a stretch lose it for the course."""
    steps: dict[int, int] = {}
    measure = Gauge.measure

    def noting(gauge: Gauge) -> float:
        steps[run.step] = gauge.steps
        return measure(gauge)

    monkeypatch.setattr(Gauge, "measure", noting)
    period = CONTEXT * interval
    length = 4 * period + recovery
    middle = recovery // 2 // max(1, recovery // 8) * max(1, recovery // 8) if recovery >= 2 * max(interval, 4) else recovery
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options: dict[str, Any] = {"interval": interval, "policy": FixedHorizon(8), "max_steps": length + 1}
    judged_at: list[int] = []
    options |= {"guard": Guard(recovery, tolerance=1.0), "on_event": lambda event: judged_at.append(run.step)}

    def probe() -> float:
        return 1.005 if behind and run._cycle._trials._trial else 1.0  # type: ignore[union-attr]

    with Nowcast(model, optimizer, server=ShiftingEndpoint(), probe=probe, **options) as run:
        for _ in range(length):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    jumps = [event.step for event in run.events if event.outcome == "accepted"]
    assert len(jumps) > 1
    trials = {step for jump in jumps for step in range(jump, jump + recovery + 1)}
    assert [step - jump for step, jump in zip(judged_at, jumps, strict=True)] == [recovery if behind else middle] * len(jumps)
    judged = {steps[step] for step in judged_at}
    levels = {count for step, count in steps.items() if step not in trials and step > 1}
    assert judged == levels == {stretch_steps(recovery, interval)}


@pytest.mark.parametrize(("scatter", "outcome"), [(0.0, "rejected"), (0.03, "accepted")])
def test_what_may_be_chance_is_no_reason_to_undo(scatter: float, outcome: str) -> None:
    """The losses of one run scatter; verdicts that follow the scatter undo good jumps as often as bad ones."""

    def scattered(step: int, since: int | None) -> float:
        return curve(step) * (1 + scatter * (-1) ** (step // 2 % 2)) if since is None else 1.07 * curve(step)

    nowcast = play(scattered, steps=2 * PERIOD, guard=Guard(recovery=4))
    assert next(nowcasts(nowcast))[1] == outcome


def test_gains_are_credit() -> None:
    """One bad verdict would otherwise end the jumps of a run that they have brought far ahead."""

    def run(share: float) -> list[tuple[int, str, str]]:
        def loss(step: int, since: int | None) -> float:
            first = step <= 2 * PERIOD and (since is not None or step > PERIOD)
            return curve(step) * (share if first or step > 2 * PERIOD else 1.0) * (1.2 if since and not first else 1.0)

        return list(nowcasts(play(loss, steps=10 * PERIOD, guard=Guard(RECOVERY, budget=1.0))))

    for share, spent in ((1.0, True), (0.8, False)):
        outcomes = run(share)
        assert [outcome for _, outcome, _ in outcomes[:2]] == ["accepted", "rejected"]
        assert any(reason == "budget_spent" for *_, reason in outcomes) == spent


def falling(step: int) -> float:
    """A training curve that is not too steep to be judged by."""
    return 2.0 * step**-0.1


@pytest.mark.parametrize(("share", "outcome"), [(-0.5, "accepted"), (0.5, "accepted"), (1.5, "rejected")])
def test_a_jump_is_undone_only_if_the_run_is_better_off_where_it_was(share: float, outcome: str) -> None:
    """A rollback costs the steps of the window: to undo a jump that has lost less than they gained makes it worse."""
    gained = falling(PERIOD) - falling(PERIOD + 3)  # by the course, until the middle of what is judged
    nowcast = play(
        lambda step, since: falling(step) if since is None else falling(PERIOD + 3) + share * gained,
        steps=4 * PERIOD,
        guard=Guard(RECOVERY, tolerance=0.0, budget=1.0),
    )
    (_, first, reason), (_, second, refusal), *_ = nowcasts(nowcast)
    assert (first, reason) == (outcome, "not_recovered" if outcome == "rejected" else "")
    if share > 0:  # what was lost either way is all there is to lose
        assert (second, refusal) == ("skipped", "paused" if outcome == "rejected" else "budget_spent")
    else:
        assert second == "rejected"  # tried, and what was good then is not good now


def test_a_step_is_worth_what_it_brings() -> None:
    """On a plateau a rollback costs nothing, and trials may go on; in a steep run few steps are all that may be lost."""
    options: dict[str, Any] = {"steps": 20 * PERIOD, "guard": Guard(RECOVERY, budget=1.0)}
    flat_run = play(lambda step, since: 1.0 if since is None else 1.05, **options)
    steep = play(lambda step, since: curve(step) * (1.0 if since is None else 1.05), **options)
    assert flat_run.summary()["nowcasts"]["rejected"] == 4  # with pauses of 1, 2 and 4 periods
    assert "budget_spent" not in flat_run.summary()["reasons"]
    assert steep.summary()["nowcasts"]["rejected"] < 4
    assert steep.summary()["reasons"]["budget_spent"] > 0


@pytest.mark.parametrize(("loss", "cost"), [(math.nan, 0), (math.inf, 0), (50.0, 0)])
def test_what_is_hopeless_is_undone_at_once(loss: float, cost: int) -> None:
    """Steps spent on weights worse than untrained ones are lost for certain."""
    nowcast = play(lambda step, since: curve(step) if since is None else loss, steps=2 * PERIOD)
    assert next(nowcasts(nowcast)) == (PERIOD, "rejected", "hopeless")
    assert nowcast.summary()["cost_steps"] == cost


def test_rejections_cost_less_and_less() -> None:
    """A forecaster that never helps must cost a bounded, small share of the run."""
    steps = 60 * PERIOD
    nowcast = play(
        lambda step, since: curve(step) * (1.0 if since is None else 1.05), steps=steps, guard=Guard(RECOVERY, 1.0, budget=0.5)
    )
    tried = [step for step, outcome, _ in nowcasts(nowcast) if outcome == "rejected"]
    gaps = [(after - before - RECOVERY) // PERIOD - 1 for before, after in pairwise(tried)]
    assert gaps[:5] == [1, 2, 4, 8, 8]
    assert nowcast.summary()["cost_steps"] == len(tried) * RECOVERY
    assert nowcast.summary()["reasons"]["paused"] == sum(gaps) + min(8, nowcast.summary()["reasons"]["paused"] - sum(gaps))
    horizons = [event.horizon for event in nowcast.events if event.outcome == "rejected"]
    assert horizons[:4] == [8, 4, 2, 1]
    bad = lambda step, since: curve(step) * (1.0 if since is None else 1.05)  # noqa: E731
    tight = play(bad, steps=steps, guard=Guard(RECOVERY, 1.0, budget=0.01))
    assert tight.summary()["cost_steps"] <= max(RECOVERY, 0.01 * steps)
    assert tight.summary()["reasons"]["budget_spent"] > 0


def test_success_makes_bolder_again() -> None:
    """One unlucky verdict must not keep the horizons short for the rest of the run."""
    nowcast = play(
        lambda step, since: 1.0 if since is None or step > 2 * PERIOD else 1.2, steps=8 * PERIOD, guard=Guard(RECOVERY, budget=0.5)
    )
    horizons = [event.horizon for event in nowcast.events if event.outcome in ("rejected", "accepted")]
    assert horizons[:4] == [8, 4, 8, 8]


def test_no_jump_without_time_to_recover_or_without_a_loss(caplog: pytest.LogCaptureFixture) -> None:
    """A run that ends in the spike after a jump is worse than one that never jumped."""
    steps = 2 * PERIOD + RECOVERY - 1
    nowcast = play(lambda step, since: 1.0, steps=steps)
    assert list(nowcasts(nowcast)) == [(PERIOD, "accepted", ""), (2 * PERIOD, "skipped", "no_time_to_recover")]

    def broken(step: int, since: int | None) -> float:
        raise ValueError

    assert [reason for _, _, reason in nowcasts(play(broken, steps=2 * PERIOD))] == ["no_loss"]
    assert [record.message for record in caplog.records].count("the probe failed; without it no jump is made") == 1


@pytest.mark.parametrize(("context", "interval", "recovery"), [(2, 1, 4), (4, 1, 4), (2, 4, 8), (5, 4, 20)])
def test_no_jump_without_a_course_to_judge_it_by(context: int, interval: int, recovery: int) -> None:
    """Where a trial ends with the period, nothing is known of the run since; the next jump would stay whatever it did."""
    period = context * interval
    first = period + recovery

    def loss(step: int, since: int | None) -> float:
        return 1.0 if since is None else 1.001 if step <= first else 50.0

    options = {"context": context, "interval": interval, "guard": Guard(recovery, tolerance=1.0, budget=1.0)}
    told = list(nowcasts(play(loss, steps=6 * first, **options)))
    assert (period, "accepted", "") in told
    assert (first, "skipped", "no_loss") in told
    assert {outcome for step, outcome, _ in told if step > period} == {"skipped", "rejected"}


@pytest.mark.parametrize(("slope", "scatter", "reason"), [(0.2, 0.0, "loss_rising"), (0.2, 0.5, ""), (-0.2, 0.0, "")])
def test_no_jump_where_the_loss_rises(slope: float, scatter: float, reason: str) -> None:
    """A forecast sees where the weights are heading; where held data say that this is the wrong way, it would get there sooner."""
    nowcast = play(lambda step, since: step**slope * (1 + scatter * (-1) ** (step // 2 % 2)), steps=PERIOD + RECOVERY)
    assert next(nowcasts(nowcast)) == (PERIOD, "skipped" if reason else "accepted", reason)


def test_training_losses_serve_where_there_is_no_probe() -> None:
    """Most loops have no held batches at hand."""
    harmless = Run(ShiftingEndpoint(shift=0.0), probe=None, guard=Guard(recovery=16, tolerance=0.5))
    assert harmless.nowcast is not None
    with harmless.nowcast:
        harmless.train(PERIOD + 16)
    assert [event.outcome for event in harmless.nowcast.events] == ["accepted"]
    harmful = Run(ShiftingEndpoint(shift=50.0), probe=None, guard=Guard(recovery=16))
    assert harmful.nowcast is not None
    with harmful.nowcast:
        harmful.train(PERIOD + 16)
    assert [(event.outcome, event.reason) for event in harmful.nowcast.events] == [("rejected", "hopeless")]
    assert harmful.nowcast.summary()["cost_steps"] == 2  # an eighth of the window


@pytest.mark.parametrize(("shift", "outcome", "cost"), [(0.0, "accepted", 0), (50.0, "rejected", 16)])
def test_losses_may_be_told_now_and_then(shift: float, outcome: str, cost: int) -> None:
    """Loops log every so many steps: looked at in between, good jumps had no loss and were undone; and bad ones were seen late."""
    run = Run(ShiftingEndpoint(shift), probe=None, guard=Guard(recovery=64, tolerance=0.5), interval=32, max_steps=10_000)
    assert run.nowcast is not None
    observe, losses = run.nowcast.observe, []

    def every_tenth(loss: torch.Tensor) -> None:
        losses.append(loss)
        if len(losses) % 10 == 0:
            observe(loss)

    run.nowcast.observe = every_tenth  # type: ignore[assignment, method-assign]
    with run.nowcast:
        run.train(CONTEXT * 32 + 64)
    assert [(event.outcome, event.cost_steps) for event in run.nowcast.events] == [(outcome, cost)]


def test_a_loss_is_taken_down_as_it_was() -> None:
    """Compiled steps and CUDA graphs give every loss in the same tensor: the mean would be the last one, and scatter as it does."""
    gauge = Gauge(nn.Linear(1, 1), [], None, ranks=Ranks(), window=4)
    loss = torch.zeros(())
    for value in (1.0, 2.0, 6.0):
        gauge.observe(loss.fill_(value))
    assert gauge.measure() == 3.0


def test_a_probe_leaves_the_model_as_it_was() -> None:
    """Running means, modes or random numbers changed by measuring would change the run it measures."""
    plain, probed = Run(None), Run(ShiftingEndpoint(), max_steps=PERIOD - 1)
    torch.manual_seed(1)
    plain.train(PERIOD - 1)
    torch.manual_seed(1)
    assert probed.nowcast is not None
    with probed.nowcast:
        probed.train(PERIOD - 1)
    assert torch.equal(plain.bits(), probed.bits())
    assert probed.model.training


@pytest.mark.parametrize(
    "name", ["Adam", "AdamW", "SGD", "Adagrad", "Adadelta", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "LBFGS"]
)
@pytest.mark.parametrize("steps_before", [0, 3])
def test_every_optimizer_of_torch_can_be_kept(name: str, steps_before: int) -> None:
    """A state that is only partly restored gives other steps from then on."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-2)

    def train(steps: int) -> torch.Tensor:
        for index in range(steps):
            inputs = torch.full((2, 4), float(index + 1))

            def closure(inputs: torch.Tensor = inputs) -> torch.Tensor:
                optimizer.zero_grad()
                loss = model(inputs).square().mean()
                loss.backward()
                return loss

            optimizer.step(closure)
        return flat(model)

    train(steps_before)
    kept = KeptState(model=model, optimizer=optimizer)
    kept.keep()
    first = train(4)
    kept.restore()
    assert torch.equal(train(4), first)
    kept.restore()
    assert torch.equal(train(4), first)  # what was kept is not used up


def test_layers_thawed_in_the_middle_of_a_run_go_back() -> None:
    """Half of a network would go back with a rejected jump, and the other half stay where no training has led."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1))
    model[:2].requires_grad_(False)
    optimizer = torch.optim.Adam([{"params": model[1:].parameters()}], lr=0.1)

    def train(steps: int) -> torch.Tensor:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
        return flat(model)

    kept = KeptState(model=model, optimizer=optimizer)
    train(2)
    kept.keep()
    saved = kept.state_dict()["parameters"]
    assert list(saved) == ["2", "3"]  # what is frozen takes no memory
    optimizer.add_param_group({"params": model[0].parameters()})
    model.requires_grad_(True)
    train(2)
    kept.keep()
    assert len(kept.state_dict()["parameters"]) == 6
    first = train(2)
    kept.restore()
    assert torch.equal(train(2), first)
    kept.restore()
    model[1].requires_grad_(False)  # it keeps its moments, and may come back
    kept.keep()
    assert len(kept.state_dict()["parameters"]) == 6


@pytest.mark.parametrize("stepped", [False, True])
def test_what_another_device_kept_goes_back_here(*, stepped: bool) -> None:
    """Ranks that resume from one file would have the first rank's moments on its device, and fail at the next step."""

    def make(device: str) -> tuple[nn.Module, torch.optim.Optimizer, KeptState]:
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(device)
        optimizer = torch.optim.Adam(model.parameters())
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return model, optimizer, KeptState(model=model, optimizer=optimizer)

    _, optimizer, kept = make("cpu")
    optimizer.step()
    kept.keep()
    model, other, resumed = make("meta")  # as good as a second GPU
    if stepped:
        other.step()
    resumed.load_state_dict(kept.state_dict())
    resumed.restore()
    for state in other.state.values():
        assert {name: value.device.type for name, value in state.items()} == {
            "step": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta",
        }  # fmt: skip
    assert len(other.state) == 4
    assert all(buffer.is_meta for buffer in model.buffers())


class Reassigning(nn.Module):
    """Keeps its statistics as many do: with a new tensor at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("before", self.mean)
        self.register_buffer("seen", torch.zeros(0, 4))
        self.mean: torch.Tensor
        self.seen: torch.Tensor

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.layer(inputs)
        self.before = self.mean
        self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
        self.seen = torch.cat((self.seen, hidden.detach()[:1]))
        return hidden - self.mean


@pytest.mark.parametrize("steps_before", [0, 3])
def test_buffers_that_forward_replaces_go_back(steps_before: int) -> None:
    """What was kept would be written to tensors that the model no longer has, and statistics of a rejected jump stay."""
    torch.manual_seed(0)
    model = nn.Sequential(Reassigning())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = KeptState(model=model, optimizer=optimizer)
    for _ in range(steps_before):
        model(torch.randn(8, 4))
    kept.keep()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert len(before) == 5
    for _ in range(2):
        for _ in range(3):
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
        kept.restore()
        now = model.state_dict()
        assert all(torch.equal(now[name], value) for name, value in before.items())  # and what was kept is not used up


@pytest.mark.parametrize(
    ("options", "word"), [({"recovery": 1}, "recovery"), ({"tolerance": -1.0}, "tolerance"), ({"budget": 2.0}, "budget")]
)
def test_a_guard_that_cannot_work_is_refused(options: dict[str, Any], word: str) -> None:
    """A window too short to measure in would reject or accept by chance."""
    with pytest.raises(BadArgument, match=word):
        Guard(**options)


def test_what_has_no_state_cannot_be_kept() -> None:
    """A scheduler passed by mistake as a function would silently not go back."""
    with pytest.raises(BadArgument, match="state_dict"):
        Run(ShiftingEndpoint(), guard=Guard(also=(lambda: 0,)))  # type: ignore[arg-type]
