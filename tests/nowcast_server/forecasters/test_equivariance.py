"""Renumbering a network's hidden neurons renumbers its forecast, and nothing else."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import Graph, expand, match
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_checkpoint, random_states
from published_networks import build
from symmetries import symmetry
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from nowcast_server.forecasters import Forecaster, load_forecaster
from nowcast_server.nino.checkpoint import save_checkpoint
from nowcast_server.nino.laplacian import laplacian_features
from trainer_worker.wiring import wire

NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"dims": [6, 9, 7, 3]},
    "conv": {"in_channels": 2, "hid": [4, 6, 5], "classes": 3},
    "conv_bn": {"channels": [3, 5, 7], "classes": 4, "first_conv_bias": True},
    "gpt2": {"n_embd": 12, "n_layer": 2, "n_head": 3, "vocab_size": 20, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0},
    "llama": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 20,
        "intermediate_size": 10,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "bert": {
        "head": "BertForMaskedLM",
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "vocab_size": 20,
        "max_position_embeddings": 8,
        "intermediate_size": 14,
        "pad_token_id": 0,
    },
}


@cache
def network(family: str) -> nn.Module:
    torch.manual_seed(0)
    model = build({"family": family, **NETWORKS[family]}).eval()
    for parameter in model.parameters():  # biases and norms that all start alike would hide a wrong permutation
        nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def answer(model: nn.Module, flat: Tensor, family: str) -> Tensor:
    """What the network computes with these parameters."""
    vector_to_parameters(flat, model.parameters())
    generator = torch.Generator().manual_seed(1)
    if family in ("gpt2", "llama", "bert"):
        logits: Tensor = model(input_ids=torch.randint(0, 20, (2, 8), generator=generator)).logits
        return logits
    sizes = {"mlp": (4, 6), "conv": (4, 2, 9, 9), "conv_bn": (4, 3, 9, 9)}
    out: Tensor = model(torch.randn(sizes[family], generator=generator))
    return out


def renumbering(graph: Graph, permutation: Tensor) -> Tensor:
    """Which neuron each place holds after the permutation; asserts that it is a symmetry of the graph."""
    moved = replace(graph, param_edge=graph.param_edge[permutation], param_slot=graph.param_slot[permutation])
    return torch.from_numpy(match(graph, moved))


@pytest.fixture(scope="module")
def forecasters(tmp_path_factory: pytest.TempPathFactory) -> list[Forecaster]:
    folder: Path = tmp_path_factory.mktemp("weights")
    save_checkpoint(random_checkpoint(hidden=32, gain=1.5), folder / "nino.safetensors")
    save_checkpoint(random_checkpoint(graph=False, gain=1.5), folder / "wnn.safetensors")
    return [load_forecaster(name, checkpoint=folder / f"{name}.safetensors") for name in ("nino", "wnn")]


@pytest.mark.parametrize("family", list(NETWORKS))
def test_equivariance(family: str, forecasters: list[Forecaster]) -> None:
    """A forecast would depend on how neurons happen to be numbered, or a wiring would tie neurons that are not alike."""
    model = network(family)
    wiring, meta = wire(model, layout="published"), {"family": family, **NETWORKS[family]}
    graph, node_pe = expand(wiring), laplacian_features(wiring)
    flat = parameters_to_vector(model.parameters()).detach()
    states = flat + 0.1 * random_states(wiring)
    expected = answer(model, flat, family)

    @given(st.integers(0, 2**31))
    @settings(max_examples=4, deadline=None, derandomize=True)
    def holds(seed: int) -> None:
        permutation = symmetry(model, meta, seed=seed)
        assert torch.allclose(answer(model, flat[permutation], family), expected, atol=1e-4), "not a symmetry of the network"
        places = renumbering(graph, permutation)
        for forecaster in forecasters:
            forecasts = forecaster.forecast(wiring, states, (1, 40), node_pe)[:, permutation]
            permuted = forecaster.forecast(wiring, states[:, permutation], (1, 40), node_pe[places])
            change = (forecasts - states[-1, permutation]).norm()
            assert (forecasts - permuted).norm() <= 2e-5 * change

    holds()


def test_the_test_can_fail(forecasters: list[Forecaster]) -> None:
    """Swapping the weights of two neurons on one side only is no symmetry, and the forecast shows it."""
    model = network("mlp")
    wiring = wire(model)
    node_pe, states = laplacian_features(wiring), 0.1 * random_states(wiring)
    permutation = torch.arange(wiring.size)
    permutation[:12] = permutation[:12].roll(6)  # the incoming weights of two hidden neurons, without their biases
    forecasts, permuted = (forecasters[0].forecast(wiring, each, (40,), node_pe) for each in (states, states[:, permutation]))
    change = (forecasts - states[-1]).norm()
    assert (forecasts[:, permutation] - permuted).norm() > 1e-3 * change
