"""From a forecast to a push: bounds, cuts and what stays."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from protos.errors import BadForecast
from trainer_worker import BadArgument, Push
from trainer_worker.push import displacement, shape
from trainer_worker.weights.flat import FlatParameters, Piece


def pieces() -> tuple[Piece, ...]:
    """Of a matrix of 4 x 3 and a vector of 4."""
    model = nn.Linear(3, 4)
    return FlatParameters(model, [torch.optim.SGD(model.parameters(), lr=1.0)]).pieces


def context(seed: int, scale: float = 1.0) -> list[Tensor]:
    """Five snapshots (16,) of a walk with a drift."""
    generator = torch.Generator().manual_seed(seed)
    steps = 0.1 + 0.1 * torch.randn(5, 16, generator=generator)
    return list(scale * (1 + steps.cumsum(0)))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.floats(0, 0.99), st.sampled_from([1e-30, 1e-3, 1.0, 1e6, 1e30]), st.booleans())
def test_no_push_is_longer_than_gain_times_the_movement(seed: int, gain: float, scale: float, hold: bool) -> None:  # noqa: FBT001
    """The loop explodes where a tensor is pushed by more than it was seen to move: the next context sees the push."""
    states = context(seed)
    forecast = scale * torch.randn(16, generator=torch.Generator().manual_seed(seed + 1))
    pushed = shape(forecast, states, pieces(), gain=gain, hold_norms=hold)
    assert pushed.isfinite().all()
    for piece in pieces():
        moved = (states[-1] - states[0])[piece.start : piece.stop] / 4
        part = pushed[piece.start : piece.stop]
        assert part.norm() <= 1.0001 * gain * moved.norm()
        assert part.norm() == 0 or torch.dot(part, moved) > 0


@pytest.mark.parametrize(
    ("degrees", "matrix", "vector"),
    [(0, 1.0, 1.0), (25, 1.0, 1.0), (31.788, 1.0, 0.5), (37, 1.0, 0.0), (45, 1.0, 0.0), (53.13, 0.5, 0.0), (61, 0.0, 0.0)],
)
def test_a_push_goes_where_the_forecast_points_if_that_is_along(degrees: float, matrix: float, vector: float) -> None:
    """Where a long push may point elsewhere, the next context has it for movement, and a wrong forecast keeps itself up."""
    torch.manual_seed(0)
    moved, other = torch.randn(2, 16, dtype=torch.float64)
    for piece in pieces():
        place = slice(piece.start, piece.stop)
        other[place] -= torch.dot(other[place], moved[place]) / torch.dot(moved[place], moved[place]) * moved[place]
        other[place] *= moved[place].norm() / other[place].norm()
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    states = [(0.1 * index * moved).float() for index in range(5)]
    ahead = angle.cos() * moved + angle.sin() * other
    pushed = shape(states[-1] + ahead.float(), states, pieces(), gain=0.5, hold_norms=False)
    for piece, share in zip(pieces(), (matrix, vector), strict=True):
        place = slice(piece.start, piece.stop)
        expected = share * 0.5 * 0.1 * moved[place].norm() * ahead[place] / ahead[place].norm()
        torch.testing.assert_close(pushed[place], expected.float(), rtol=0.01, atol=1e-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_forecast_that_is_not_finite_is_refused(value: float) -> None:
    """Multiplied by a factor of 0, infinity would be NaN in the weights."""
    forecast = context(0)[-1].clone()
    forecast[3] = value
    with pytest.raises(BadForecast):
        shape(forecast.clone(), context(0), pieces(), gain=0.7, hold_norms=True)
    with pytest.raises(BadForecast):
        displacement(forecast, context(0), pieces(), hold_norms=True)


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("value", [3e38, -3e38, 1e-45])
def test_forecasts_at_the_ends_of_float32_stay_finite(value: float, *, hold: bool) -> None:
    """Their norms are beyond float32: a push would be NaN."""
    forecast = torch.full((16,), value)
    forecast[::2] *= -1
    for last in (context(0)[-1], torch.zeros(16)):
        states = [last + 1, last]
        assert displacement(forecast.clone(), states, pieces(), hold_norms=hold).isfinite().all()
    assert shape(forecast, context(0), pieces(), gain=0.7, hold_norms=hold).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_that_did_not_move_stay(dtype: torch.dtype) -> None:
    """Padding rows and masked weights are what they are for a reason: neither a push nor a jump may move them."""

    def moves(states: list[Tensor]) -> tuple[Tensor, Tensor]:
        ahead = states[-1].float() + 1
        jump = displacement(ahead.clone(), states, pieces(), hold_norms=False)
        return shape(ahead, states, pieces(), gain=0.7, hold_norms=False), jump

    states = [state.to(dtype) for state in context(0)]
    for state in states:
        state[::3] = states[0][::3]
    states[2][0] = 0.0  # moved, and came back
    for moved in moves(states):
        assert (moved[3::3] == 0).all()
        assert (moved[[0, 1, 2, 4]] != 0).all()
    for state in states:
        state[:12] = 1.0  # a layer that is not used yet
    for moved in moves(states):
        assert (moved[:12] == 0).all()
        assert (moved[12:] != 0).any()


def test_norms_of_matrices_are_held_and_those_of_vectors_are_not() -> None:
    """Weight matrices before a normalisation would grow without effect but on the learning rate."""
    states = context(0)
    longer = 2 * states[-1]
    held = shape(longer.clone(), states, pieces(), gain=0.7, hold_norms=True)
    assert held[:12].abs().max() < 1e-5
    assert held[12:].abs().max() > 0.01
    assert shape(longer.clone(), states, pieces(), gain=0.7, hold_norms=False)[:12].abs().max() > 0.01
    turned = states[-1] + torch.randn(16, generator=torch.Generator().manual_seed(1))
    moved = states[-1] + displacement(turned, states, pieces(), hold_norms=True)
    assert moved[:12].norm() == pytest.approx(float(states[-1][:12].norm()), rel=1e-5)


def test_the_gain_follows_its_course() -> None:
    """Pushed at the end of a run, weights do not come to rest; pushed at its start, they go where nobody knows yet."""
    push = Push(gain=0.8, start=0.1, fade=0.6)
    at = [push.gain_at(step, max_steps=1000) for step in (0, 99, 100, 600, 800, 900, 1000, 2000)]
    assert at == pytest.approx([0, 0, 0.8, 0.8, 0.4, 0.2, 0, 0])
    assert [push.gain_at(step, max_steps=None) for step in (0, 10**9)] == [0.8, 0.8]
    assert [Push(gain=0.8, start=0, fade=1).gain_at(step, max_steps=1000) for step in (0, 999, 1000)] == [0.8, 0.8, 0]


@pytest.mark.parametrize(
    ("option", "values"), [("gain", (1.0, -0.1, float("nan"))), ("start", (1.5,)), ("fade", (-1,)), ("horizon", (0, 2.5))]
)
def test_a_push_that_cannot_work_is_refused(option: str, values: tuple[float, ...]) -> None:
    """At a gain of 1 the loss is 1e4 within a few intervals."""
    for value in values:
        with pytest.raises(BadArgument, match=f"push: {option} must"):
            Push(**{option: value})  # type: ignore[arg-type]
