"""The wiring: what it accepts, what it refuses and why, and its identity across processes."""

from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from protos.errors import BadWiring
from protos.wiring import Block, EdgeType, Parameter, Wiring

WEIGHT, BIAS = Parameter("0.weight", (3, 4)), Parameter("0.bias", (3,))
LINEAR = Block(EdgeType.LINEAR, 0, 4, 4, 3, parameter=0, source_stride=1, target_stride=4)
OFFSET = Block(EdgeType.OTHER, 7, 1, 4, 3, parameter=1, target_stride=1)
WIRING = Wiring((WEIGHT, BIAS), 8, (LINEAR, OFFSET))


def test_counts_follow_from_the_blocks() -> None:
    """Budgets and progress are computed from these counts."""
    assert (WIRING.size, WIRING.offsets, WIRING.edges, WIRING.slots) == (15, (0, 12), 8 + 12 + 3, 1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=13) | st.dictionaries(st.sampled_from(["parameters", "neurons", "blocks"]), inner),
    max_leaves=40,
)


@given(json_values)
def test_any_json_is_read_or_refused_cleanly(data: Any) -> None:
    """Any error but `BadWiring` would be answered with a 500."""
    with suppress(BadWiring):
        Wiring.from_dict(data)
