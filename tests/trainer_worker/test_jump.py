"""How a forecast is taken over: how much of it, moments, normalisation statistics, and how all of it is undone."""

from typing import Any

import pytest
import torch
from small_runs import CONTEXT, INTERVAL, PERIOD, WHOLE, ShiftingEndpoint, flat, network, step
from torch import nn

from trainer_worker import BadArgument, FixedHorizon, Guard, Jump, Nowcast
from trainer_worker.jump import Landing, recalibrate
from trainer_worker.weights.flat import FlatParameters


def run(model: nn.Module, optimizer: torch.optim.Optimizer, endpoint: Any, *, steps: int = PERIOD, **options: Any) -> Nowcast:
    defaults = {"max_steps": 100, "interval": INTERVAL, "context": CONTEXT, "policy": FixedHorizon(3)}
    with Nowcast(model, optimizer, server=endpoint, **{**defaults, **options}) as nowcast:
        for index in range(steps):
            step(model, optimizer, index)
    return nowcast


def test_a_part_of_the_displacement() -> None:
    """A scale that moved the weights themselves, or a bound on the wrong distance, would throw the run anywhere."""
    jumped = {}
    for name, jump in (("whole", WHOLE), ("half", Jump(0.5, 1)), ("bound", Jump(1, 1, 0.25)), ("far", Jump(1, 1, 1e6))):
        model, endpoint = network(), ShiftingEndpoint(shift=1.0)
        run(model, torch.optim.Adam(model.parameters(), lr=1e-2), endpoint, jump=jump)
        last, first = endpoint.sent[PERIOD], endpoint.sent[INTERVAL]
        jumped[name] = flat(model) - last
    torch.testing.assert_close(jumped["whole"], torch.full_like(last, 3.0))
    torch.testing.assert_close(jumped["half"], torch.full_like(last, 1.5))
    assert torch.equal(jumped["far"], jumped["whole"])
    assert float(jumped["bound"].norm()) == pytest.approx(0.25 * float((last - first).norm()), rel=1e-4)
    assert float(jumped["bound"].std()) < 1e-6  # shortened, not turned


@pytest.mark.parametrize("growth", [0.0, 0.3, 1.0])
def test_how_much_of_the_growth_is_made(growth: float) -> None:
    """Taken over whole, it slows down what comes after; a jump turns the weights, and biases go where they are forecast."""
    model, endpoint = network(), ShiftingEndpoint(shift=0.1)
    run(model, torch.optim.Adam(model.parameters(), lr=1e-2), endpoint, jump=Jump(growth=growth))
    sizes = [parameter.numel() for parameter in model.parameters()]
    last = endpoint.sent[PERIOD]
    for mine, before in zip(model.parameters(), last.split(sizes), strict=True):
        jumped, forecast = mine.detach().flatten(), before + 0.1 * 3
        if mine.dim() == 1:
            assert torch.equal(jumped, forecast)
            continue
        assert float(forecast.norm() / before.norm()) > 1.05  # there is growth to hold back
        assert float(jumped.norm() / before.norm()) == pytest.approx(float(forecast.norm() / before.norm()) ** growth, rel=1e-5)
        torch.testing.assert_close(jumped / jumped.norm(), forecast / forecast.norm())


def test_a_tensor_that_is_zero_goes_where_it_is_forecast() -> None:
    """Its norm cannot be kept, and nothing may be divided by it. The same for one that is forecast to be zero."""
    model = network()
    nn.init.zeros_(model[2].weight)
    parameters = FlatParameters(model, torch.optim.Adam(model.parameters()), dtype=torch.float32)
    zero, other = flat(model), torch.linspace(-1, 1, parameters.size)
    for last, forecast in ((zero, other.clone()), (other, zero.clone())):
        parameters.hold_norms(forecast, last=last, growth=0.0)
        assert torch.equal(forecast[-34:], (other if last is zero else zero)[-34:])


def test_norms_of_large_tensors_are_exact() -> None:
    """Squares summed in float32 lose the small ones: a large embedding would shrink at every jump."""
    model = nn.Linear(2048, 2048, bias=False)
    parameters = FlatParameters(model, torch.optim.Adam(model.parameters()), dtype=torch.float32)
    last, forecast = torch.zeros(parameters.size), torch.full((parameters.size,), 0.02)
    last[0] = 2048 * 0.02  # one weight, of the same norm
    parameters.hold_norms(forecast, last=last, growth=0.0)
    assert float(forecast[0]) == pytest.approx(0.02, rel=1e-6)


@pytest.mark.parametrize("growth", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("jump", [{"scale": 0.5}, {"scale": 0.999_999}, {"limit": 0.4}])
def test_a_share_of_a_turn_is_a_turn(jump: dict[str, float], growth: float) -> None:
    """The straight way to a quarter turn has weights at 0.7 of their norm halfway: a shrinking that nobody forecast."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    parameters = FlatParameters(model, optimizer, dtype=torch.float32)
    landing = Landing(Jump(**jump, growth=growth), parameters=parameters, model=model, optimizer=optimizer, interval=1, probe=None)
    last, whole = torch.tensor([2.0, 0, 0, 0, 1, 1]), torch.tensor([0.0, 8, 0, 0, 3, 1])
    forecast = whole.clone()
    landing.soften(forecast, first=-last, last=last)
    held = whole.clone()
    parameters.hold_norms(held, last=last, growth=growth)
    share = jump.get("scale") or 0.4 * float((2 * last).norm()) / float((held - last).norm())
    straight = last + share * (held - last)
    torch.testing.assert_close(forecast[4:], straight[4:])
    torch.testing.assert_close(forecast[:4] / forecast[:4].norm(), straight[:4] / straight[:4].norm())
    norms = {0.0: 2.0, 1.0: float(straight[:4].norm())}
    between = (float(straight[:4].norm()) * (2 + share * 2)) ** 0.5  # half of the growth is a norm of 4
    assert float(forecast[:4].norm()) == pytest.approx(norms.get(growth, between), rel=1e-5)


def test_what_a_jump_may_not_move_is_not_scaled() -> None:
    """Only loading passes frozen weights over: a forecast of theirs that was scaled would be counted in a bound."""
    model = network()
    model[0].requires_grad_(False)
    parameters = FlatParameters(model, torch.optim.Adam(model.parameters()), dtype=torch.float16)
    last, forecast = flat(model).half(), 2 * flat(model)
    parameters.hold_norms(forecast, last=last, growth=0.0)
    assert torch.equal(forecast[:144], 2 * flat(model)[:144])
    torch.testing.assert_close(forecast[144:176], last[144:176].float(), atol=0.0, rtol=1e-3)


def test_a_bound_counts_what_a_jump_may_move() -> None:
    """A frozen backbone does not travel: with its part of the forecast counted no jump would ever be short enough."""
    model, endpoint = network(), ShiftingEndpoint(shift=1.0)
    model[0].requires_grad_(False)
    run(model, torch.optim.Adam(model.parameters(), lr=1e-2), endpoint, jump=Jump(limit=0.5, growth=1))
    moved = (flat(model) - endpoint.sent[PERIOD])[-34:]
    assert float(moved.norm()) == pytest.approx(
        0.5 * float((endpoint.sent[PERIOD] - endpoint.sent[INTERVAL])[-34:].norm()), rel=1e-4
    )


def test_moments_are_kept_reset_or_rescaled() -> None:
    """Rescaled moments that changed the next step's size would be a jump of their own."""
    after = {}
    for moments in ("keep", "reset", "rescale"):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True)
        run(model, optimizer, ShiftingEndpoint(), jump=Jump(moments=moments))  # type: ignore[arg-type]
        state = optimizer.state.get(model[0].weight, {})
        after[moments] = {name: value.clone() for name, value in state.items()}
    assert after["reset"] == {}
    assert float(after["keep"]["step"]) == PERIOD
    assert float(after["rescale"]["step"]) == INTERVAL
    for name, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.999), ("max_exp_avg_sq", 0.999)):
        kept, younger = (after[which][name] / (1 - beta ** float(after[which]["step"])) for which in ("keep", "rescale"))
        torch.testing.assert_close(kept, younger)
        assert not torch.equal(after["keep"][name], after["rescale"][name])


@pytest.mark.parametrize("moments", ["reset", "rescale"])
@pytest.mark.parametrize("quiet", [0, 2])
def test_a_rollback_undoes_all_of_it(moments: Any, *, quiet: int) -> None:
    """Moments or statistics that stay changed after a rollback make the run another one."""

    def batch_norm() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    model, optimizer = batch_norm()
    calls = {"made": 0}

    def forward() -> None:
        calls["made"] += 1
        model(torch.randn(16, 8))

    def probe() -> float:
        return 1.5 if calls["made"] else 1.0

    options: dict[str, Any] = {"guard": Guard(recovery=4), "probe": probe, "quiet": quiet}
    jump = Jump(moments=moments, recalibrate=forward, scale=0.5)
    nowcast = run(model, optimizer, ShiftingEndpoint(shift=0.1), steps=PERIOD + 10, jump=jump, **options)
    (event,) = nowcast.events
    assert event.outcome == "rejected"
    plain, other = batch_norm()
    for index in (*range(PERIOD), *range(PERIOD + event.cost_steps, PERIOD + 10)):  # the batches of the trial are gone
        step(plain, other, index)
    assert calls["made"] == 1
    assert torch.equal(flat(model), flat(plain))
    for mine, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        for name, value in optimizer.state[mine].items():
            assert torch.equal(value, other.state[theirs][name])


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.drop(self.used(inputs)) * 1.0


def test_statistics_are_taken_anew() -> None:
    """Statistics of the old weights make a good jump look bad to the probe, and to every evaluation after it."""
    model = Norms()
    batches = torch.randn(4, 64, 3) * 5 + 2
    for _ in range(3):
        model(torch.randn(8, 3))
    model.unused(torch.randn(8, 3))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    random = torch.get_rng_state()
    recalibrate(model, lambda: [model(batch) for batch in batches])
    torch.testing.assert_close(model.used.running_mean, batches.mean((0, 1)))
    torch.testing.assert_close(model.used.running_var, batches.var(1).mean(0))
    assert torch.equal(model.unused.running_mean, before["unused.running_mean"])
    assert int(model.used.num_batches_tracked) == 3
    assert model.used.momentum == 0.1
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    now = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def fail() -> None:
        model(batches[0])
        raise ValueError

    recalibrate(model, fail)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, now[name])


def test_the_probe_can_recalibrate() -> None:
    """Whoever has given held batches need not give them twice."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    held = torch.randn(64, 8)
    probe = lambda: 0 * model(held).square().mean()  # noqa: E731
    run(model, torch.optim.Adam(model.parameters()), ShiftingEndpoint(), probe=probe, jump=Jump(recalibrate=True), guard=Guard(4))
    torch.testing.assert_close(model[1].running_mean, model[0](held).mean(0))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"scale": 0.0}, "scale"),
        ({"scale": 1.5}, "scale"),
        ({"growth": 1.5}, "growth"),
        ({"limit": 0.0}, "limit"),
        ({"moments": "halve"}, "keep, reset, rescale"),
        ({"recalibrate": 3}, "recalibrate"),
    ],
)
def test_a_jump_that_cannot_be_is_refused(options: dict[str, Any], word: str) -> None:
    """Found at the first jump, after a thousand steps, it would be too late."""
    with pytest.raises(BadArgument, match=word):
        Jump(**options)


def test_what_a_run_cannot_do_is_refused_before_it_starts() -> None:
    """The same, where it takes the optimizer or the probe to know."""
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for jump, word in ((Jump(moments="rescale"), "not for SGD"), (Jump(recalibrate=True), "probe")):
        with pytest.raises(BadArgument, match=word):
            Nowcast(model, sgd, server=ShiftingEndpoint(), max_steps=100, jump=jump)
