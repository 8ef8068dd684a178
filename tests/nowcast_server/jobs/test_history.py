"""The history as a data structure: whatever comes in whatever order, its rows are never confused."""

import asyncio

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nowcast_server.jobs.history import PIECE, History, first_not_finite
from protos.errors import SnapshotConflict

CONTEXT = 3
ACTION = st.tuples(st.sampled_from(["upload", "abort", "read", "release"]), st.integers(0, 9), st.integers(0, 2))


@settings(max_examples=100, deadline=None)
@given(st.lists(ACTION, max_size=40))
def test_rows_are_never_confused(actions: list[tuple[str, int, int]]) -> None:
    """An upload would write into a row that is held or read, or a row would be lost for good."""
    asyncio.run(_play(actions))


async def _play(actions: list[tuple[str, int, int]]) -> None:
    history = History(4, context=CONTEXT, dtype="float32")
    model: dict[int, float] = {}
    reads = []
    for action, step, version in actions:
        if action == "release" and reads:
            history.release(reads.pop()[0])
        elif action == "read" and model:
            context = history.read(sorted(model))
            reads.append((context, [model[each] for each in sorted(model)]))
        elif action in {"upload", "abort"}:
            if all(history._uses):  # every row is held or read: an upload would wait here
                while reads:
                    history.release(reads.pop()[0])
            row = await asyncio.wait_for(history.take(), 1)
            history.row(row).fill_(step + version / 10)
            if action == "upload":
                await _store(history, model, step, row, step + version / 10)
            history.drop(row)
        for context, values in reads:
            assert [float(state[0]) for state in context.states] == pytest.approx(values)
        assert history.steps == sorted(model)
        assert [float(history.row(history._held[each])[3]) for each in sorted(model)] == pytest.approx(
            [model[each] for each in sorted(model)]
        )
    for context, _ in reads:
        history.release(context)
    assert not history.in_use
    assert sum(history._uses) == len(model)


async def _store(history: History, model: dict[int, float], step: int, row: int, value: float) -> None:
    try:
        stored = await history.store(step, row)
    except SnapshotConflict:
        too_old = len(model) == CONTEXT and step < min(model)
        assert too_old or abs(model[step] - value) > 0.01
        return
    assert stored == (step not in model)
    model[step] = value
    if len(model) > CONTEXT:
        del model[min(model)]


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
