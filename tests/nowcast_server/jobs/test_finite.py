"""No NaN or infinity is overlooked, no finite value is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nowcast_server.jobs.arrival import PIECE, first_not_finite

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@settings(deadline=None)
@given(st.sampled_from(DTYPES), st.integers(1, 3 * PIECE), st.data())
def test_the_first_wrong_value_is_found(dtype: torch.dtype, size: int, data: st.DataObject) -> None:
    """A poisoned snapshot would be stored, or the wrong parameter be blamed."""
    values = torch.ones(size, dtype=dtype)
    wrong = data.draw(st.lists(st.integers(0, size - 1), max_size=3))
    for position in wrong:
        values[position] = data.draw(st.sampled_from([float("nan"), float("inf"), float("-inf")]))
    assert first_not_finite(values) == (min(wrong) if wrong else None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_values_are_finite(dtype: torch.dtype) -> None:
    """The largest and smallest numbers would be refused because their sum is none."""
    largest = torch.finfo(dtype).max
    assert first_not_finite(torch.full((100_000,), largest, dtype=dtype)) is None
    assert first_not_finite(torch.tensor([largest, largest, -largest, -0.0, torch.finfo(dtype).tiny], dtype=dtype)) is None
    opposite = torch.tensor([float("inf"), float("-inf")], dtype=dtype)
    assert first_not_finite(opposite) == 0
