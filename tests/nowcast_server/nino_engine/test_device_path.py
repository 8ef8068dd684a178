"""A forecast on a device, without one: on torch's `meta` device, where whatever needs a value on the host fails."""

from typing import Any

import pytest
import torch
from networks import random_checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from wirings import drawn_wiring, node_pe, transformer_wiring

from nowcast_server.nino.engine import DEVICE_SIZES, StreamingEngine
from protos.wiring import Wiring

META = torch.device("meta")
SMALL, MIXED, LARGE = transformer_wiring(width=16, vocabulary=50), drawn_wiring(5), transformer_wiring(width=300, vocabulary=4000)


class OnlyOn(TorchDispatchMode):
    """Fails at an operator that has a tensor elsewhere than on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = tree_flatten((args, kwargs, result))[0]
        elsewhere = [each.device for each in given if isinstance(each, torch.Tensor) and each.device != META]
        assert not elsewhere, f"{func} has a tensor on {elsewhere[0]}"
        self.operators.append(str(func))
        return result


def on_meta(
    wiring: Wiring, *, graph: bool = True, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[torch.Tensor, list[str]]:
    engine = StreamingEngine(random_checkpoint(graph=graph, **options), device="meta")
    states = torch.empty(5, wiring.size, dtype=dtype, device=META)
    features = node_pe(wiring).to(META) if graph else None
    engine.forecast(wiring, states, horizons=(1,), node_pe=features)  # the plan is uploaded now, once for each wiring
    with OnlyOn() as checked:
        made = engine.forecast(wiring, states, horizons=(1, 40), node_pe=features)
    return made, checked.operators


@pytest.mark.parametrize(
    "options",
    [{}, {"graph": False}, {"dtype": torch.float16}, {"dtype": torch.bfloat16}, {"vocabulary": 100}, {"layers": 5}],
    ids=["nino", "wnn", "float16", "bfloat16", "words", "deep"],
)
@pytest.mark.parametrize("wiring", [SMALL, MIXED, LARGE], ids=["small", "mixed", "large"])
def test_nothing_comes_back_to_the_host(wiring: Wiring, options: dict[str, Any]) -> None:
    """The device would wait for the host in the middle of a forecast, tile by tile, or for an index to be uploaded."""
    made, operators = on_meta(wiring, **options)
    assert made.shape == (2, wiring.size)
    assert made.device == META
    assert len(operators) > 30


def test_a_small_network_takes_few_operators() -> None:
    """Each costs the host some 5 microseconds to queue: a small network is as slow as they are many."""
    assert SMALL.edges < DEVICE_SIZES.bundle
    views = (
        "view",
        "as_strided",
        "select.int",
        "slice",
        "expand",
        "permute",
        "split",
        "unbind",
        "detach",
        "unsqueeze",
        "t.default",
    )
    _, operators = on_meta(SMALL)
    assert sum(not any(view in name for view in views) for name in operators) < 250
