"""Averages of the weights follow a jump, and a rollback."""

import copy
import math

import pytest
import torch
from small_runs import CONTEXT, INTERVAL, PERIOD, WHOLE, ShiftingEndpoint, flat, network, step, wait_for_forecasts
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainer_worker import BadArgument, FixedHorizon, Guard, Nowcast, WeightAverage

SETTINGS = {"max_steps": 100, "interval": INTERVAL, "context": CONTEXT, "policy": FixedHorizon(3), "jump": WHOLE}


def averaged(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))


def train(model: nn.Module, average: AveragedModel, *, steps: int, **options: object) -> Nowcast:
    """A loop that averages the weights after each step, as users' loops do."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Nowcast(model, optimizer, server=ShiftingEndpoint(shift=1.0), **SETTINGS, **options) as nowcast:  # type: ignore[arg-type]
        for index in range(steps):
            step(model, optimizer, index)
            average.update_parameters(model)
            if nowcast._cycle._candidates.pending is not None:
                wait_for_forecasts(nowcast)
    return nowcast


@pytest.mark.parametrize("overlap", [False, True])
def test_an_average_moves_by_what_the_model_moves(*, overlap: bool) -> None:
    """An average that stays behind mixes weights from before and after a jump, and is worse than either."""
    apart = {}
    for follows in (False, True):
        model = network()
        average = averaged(model)
        train(model, average, steps=PERIOD + INTERVAL, overlap=overlap, averages=(average,) if follows else ())
        apart[follows] = flat(average.module)
    # a shift of 1 an interval, 3 intervals ahead; later steps have averaged some of it in already where it was left behind
    assert float((apart[True] - apart[False]).min()) > 0.3
    model = network()
    left = averaged(model)
    train(model, left, steps=PERIOD - 1)
    assert float((flat(left.module) - flat(model)).abs().max()) < 1


def test_at_the_jump_it_is_exactly_the_displacement() -> None:
    """Rounding or a wrong order of parameters would scatter the average."""
    model = network()
    average = copy.deepcopy(model)
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with Nowcast(model, optimizer, server=ShiftingEndpoint(shift=1.0), averages=(average,), **SETTINGS):  # type: ignore[arg-type]
        for index in range(PERIOD):
            before = flat(average).clone()
            step(model, optimizer, index)
    moved = dict(zip([name for name, _ in model.named_parameters()], split(flat(average) - before, model), strict=True))
    assert not moved.pop("0.bias").any()  # frozen: it never jumps
    for change in moved.values():
        torch.testing.assert_close(change, torch.full_like(change, 3.0))


def split(vector: torch.Tensor, model: nn.Module) -> tuple[torch.Tensor, ...]:
    return vector.split([parameter.numel() for parameter in model.parameters()])


def test_an_average_goes_back_with_a_rejected_jump() -> None:
    """After a rollback it would remember weights that were never this run's."""
    model = network()
    average = averaged(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def probe() -> float:
        return math.nan if float(flat(model).mean()) > 1 else 1.0  # it has jumped by 3

    options = {**SETTINGS, "probe": probe, "guard": Guard(), "averages": (average,)}
    with Nowcast(model, optimizer, server=ShiftingEndpoint(shift=1.0), **options) as nowcast:  # type: ignore[arg-type]
        for index in range(PERIOD):
            before = flat(average.module)
            step(model, optimizer, index)
            if index < PERIOD - 1:
                average.update_parameters(model)
    assert [event.outcome for event in nowcast.events if event.kind == "nowcast"] == ["rejected"]
    assert torch.equal(flat(average.module), before)
    assert int(average.n_averaged) == PERIOD - 1


def test_what_is_no_average_of_the_model_is_refused() -> None:
    """The mistake would show in the middle of a run, at the first jump."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for wrong, why in ((nn.Linear(3, 3), "no parameter"), (model, "the model itself")):
        with pytest.raises(BadArgument, match=why) as raised:
            Nowcast(model, optimizer, server=ShiftingEndpoint(), averages=(wrong,), **SETTINGS)  # type: ignore[arg-type]
        assert raised.value.argument == "averages"


def test_memory_is_short_at_first_and_after_a_jump() -> None:
    """An average would hold the initial weights, or the steps that repair a jump, for hundreds of steps."""
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, decay=0.9, short=0.5, spell=3)
    held, seen = [], []
    for index in range(60):
        if index == 50:
            average.jumped()
        nn.init.constant_(model.weight, index % 7)
        average.update_parameters(model)
        held.append(float(average.module.weight.detach()))
        seen.append(float(index % 7))
    decays = [(held[i] - seen[i]) / (held[i - 1] - seen[i]) for i in range(1, 60) if abs(held[i - 1] - seen[i]) > 0.1]
    kept = [i for i in range(1, 60) if abs(held[i - 1] - seen[i]) > 0.1]
    for index, decay in zip(kept, decays, strict=True):
        expected = 0.5 if index in (50, 51, 52) else min(0.9, index / (index + 4))
        assert decay == pytest.approx(expected, abs=1e-3), index
    assert {50, 51, 52} & set(kept)


def test_statistics_are_averaged_too_and_come_back() -> None:
    """Batch normalisation's statistics are those of the weights they were taken with."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    average = WeightAverage(model, decay=0.5)
    for _ in range(20):
        model(torch.randn(8, 4) + 2)
        average.update_parameters(model)
    assert not torch.equal(average.module[1].running_mean, model[1].running_mean)
    assert int(average.module[1].num_batches_tracked) == 20
    again = WeightAverage(model)
    again.load_state_dict(average.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(again.buffers(), average.buffers(), strict=True))
    with pytest.raises(BadArgument, match="decay"):
        WeightAverage(model, decay=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_causal_mask_stays_what_it_is(dtype: torch.dtype) -> None:
    """The mean of two infinities is NaN, and so would be every loss of the average."""
    model = nn.Linear(2, 2).to(dtype)
    model.register_buffer("mask", torch.full((2, 2), -math.inf, dtype=dtype).triu(1))
    average = WeightAverage(model)
    for _ in range(3):
        average.update_parameters(model)
    assert torch.equal(average.module.mask, model.mask)
    model.mask.zero_()
    average.update_parameters(model)
    assert not average.module.mask.any()


def drift(model: nn.Module, average: WeightAverage, steps: range) -> None:
    """Weights that move as slowly as late in a run."""
    for index in steps:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1 + index / 1024)
        average.update_parameters(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_average_of_narrow_weights_moves(dtype: torch.dtype) -> None:
    """Steps of 1 - decay of the way are lost in rounding: the average would stand at the weights of the beginning."""
    narrow, wide = nn.Linear(2, 2).to(dtype), nn.Linear(2, 2)
    averages = WeightAverage(narrow), WeightAverage(wide)
    for model, average in zip((narrow, wide), averages, strict=True):
        drift(model, average, range(0, 1024, 8))  # bfloat16 has every eighth
    for mine, theirs in zip(averages[0].means.values(), averages[1].module.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-6, atol=0.0)
    assert all(torch.equal(tensor, mean.to(dtype)) for tensor, mean in averages[0].means.items())
    assert len(averages[1].state_dict()) == 4  # weights that are not narrow are averaged in place


def test_a_narrow_average_goes_on_from_its_state() -> None:
    """Begun anew at the rounded average, a resumed run would not be the run it was; an older state has no more than that."""
    model = network(dtype=torch.bfloat16)
    average, again, older = (WeightAverage(model) for _ in range(3))
    drift(model, average, range(0, 256, 8))
    state = average.state_dict()
    again.load_state_dict(state)
    older.load_state_dict({name: value for name, value in state.items() if not name.startswith("float32")})
    for each in (average, again, older):
        drift(model, each, range(256, 512, 8))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in average.state_dict().items())
    torch.testing.assert_close(flat(older.module), flat(average.module), rtol=0.01, atol=0.0)


def test_a_narrow_average_follows_a_jump() -> None:
    """Only the rounded one moved: at the next step it would be where it was before the jump."""
    models = [network(dtype=torch.bfloat16) for _ in range(2)]
    followed, left = (WeightAverage(model) for model in models)
    train(models[0], followed, steps=PERIOD + 1, averages=(followed,))
    train(models[1], left, steps=PERIOD + 1)
    assert float((flat(followed.module) - flat(left.module)).min()) > 0.3
    assert all(torch.equal(tensor, mean.bfloat16()) for tensor, mean in followed.means.items())
