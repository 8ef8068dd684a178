"""Wiring and forecaster together: permuting heads, and neurons within them, permutes the forecast."""

from pathlib import Path
from typing import Any

import pytest
import torch
from permutations import Order, attention_layers, flat, shuffle_head, swap_heads, weight_order
from published_networks import build

from nowcast_server.nino.checkpoint import load_checkpoint
from nowcast_server.nino.engine import StreamingEngine
from protos.wiring import Wiring
from trainer_worker.wiring import wire


@pytest.fixture(scope="module")
def forecaster(shared: Path) -> Any:
    return StreamingEngine(load_checkpoint(shared / "checkpoints" / "nino_no_posw.pt"))


def context(model: torch.nn.Module, seed: int = 0) -> torch.Tensor:
    """Five states that drift apart: (5, n)."""
    torch.manual_seed(seed)
    weights = flat(model)
    return torch.stack([weights + 0.05 * step * torch.randn_like(weights) for step in range(5)])


def check(forecaster: Any, wiring: Wiring, states: torch.Tensor, orders: list[Order]) -> None:
    """f(permuted) is the permuted f, with the Laplacian features permuted along; and not so without them."""
    features = 0.2 * torch.randn(wiring.neurons, 8)
    plain = forecaster.forecast(wiring, states, horizons=(1, 40), node_pe=features)
    change = (plain - states[-1]).norm()
    for order in orders:
        place = weight_order(wiring, order)
        moved = forecaster.forecast(wiring, states[:, place], horizons=(1, 40), node_pe=features[order])
        assert (moved - plain[:, place]).norm() / change < 1e-5
    misled = forecaster.forecast(wiring, states[:, place], horizons=(1, 40), node_pe=features)
    assert (misled - plain[:, place]).norm() / change > 1e-4


FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 19, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0},
    "llama": {"num_key_value_heads": 4},
    "bert": {},
}
SIZES = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 19}


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, forecaster: Any) -> None:
    """The forecast of a transformer would depend on the order of its heads, or of the neurons within one."""
    sizes = FAMILIES[name] if name == "gpt2" else {**SIZES, **FAMILIES[name]}
    model = build({"family": name, **sizes, "pad_token_id": 0})
    for label, parameter in model.named_parameters():  # the published graphs attach key biases, which do nothing, elsewhere
        if label.endswith("key.bias"):
            torch.nn.init.zeros_(parameter)
    wiring, states = wire(model), context(model)
    start = 0
    for label, parameter in model.named_parameters():
        if label.endswith("key.bias"):
            states[:, start : start + 16] = 0
        if label.endswith("c_attn.bias"):
            states[:, start + 16 : start + 32] = 0
        start += parameter.numel()
    orders = []
    for layer in attention_layers(wiring):
        orders += [swap_heads(wiring, layer[0], layer[3]), shuffle_head(wiring, layer[1], 0), shuffle_head(wiring, layer[2], 1)]
    check(forecaster, wiring, states, orders)
