"""Equivariance of transformers: their symmetries map the graph onto itself and keep what the network computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from permutations import Head, Moves, attention_layers, check_symmetry, permutation, rolled, swapped, targets, weight_order
from small_runs import flat
from torch import Tensor, nn

from nowcast_server.nino.checkpoint import load_checkpoint
from nowcast_server.nino.engine import StreamingEngine
from protos.wiring import Wiring
from trainer_worker.wiring import wire

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20}
TEXT = {"vocab_size": 19, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


def family(name: str, kind: str, **sizes: Any) -> Callable[..., nn.Module]:
    """How to make a Hugging Face model in double precision with weights everywhere."""

    def make(**changes: Any) -> nn.Module:
        import transformers

        torch.manual_seed(0)
        net = getattr(transformers, f"{name}{kind}")(getattr(transformers, f"{name}Config")(**{**sizes, **changes})).eval().double()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return net

    return make


FAMILIES = {
    "gpt2": family("GPT2", "LMHeadModel", n_embd=16, n_layer=2, n_head=4, n_positions=12, **TEXT),
    "llama": family("Llama", "ForCausalLM", **SIZES, **TEXT, num_key_value_heads=4),
    "mistral": family("Mistral", "ForCausalLM", **SIZES, **TEXT, num_key_value_heads=4),
    "qwen3": family("Qwen3", "ForCausalLM", **SIZES, **TEXT, num_key_value_heads=4, head_dim=4),
    "bert": family("Bert", "ForMaskedLM", **SIZES, **TEXT, max_position_embeddings=12),
    "vit": family("ViT", "ForImageClassification", **SIZES, image_size=6, patch_size=3),
}
MLP = ("c_fc.weight", "up_proj.weight", "intermediate.dense.weight", "fc1.weight")


def output(model: nn.Module) -> Tensor:
    """Logits of a fixed batch."""
    torch.manual_seed(1)
    if "vit" in str(model.config.model_type):
        return model(pixel_values=torch.randn(2, 3, 6, 6, dtype=torch.float64)).logits
    return model(input_ids=torch.randint(1, 19, (2, 7))).logits


def check(model: nn.Module, wiring: Wiring, moves: Moves) -> None:
    check_symmetry(model, wiring, moves, lambda: output(model))


def layers_with_heads(wiring: Wiring) -> list[list[Head]]:
    layers = attention_layers(wiring)
    assert [len(layer) for layer in layers] == [4, 4]
    return layers


ROTARY = ("llama", "mistral", "qwen3")
"""Positions tie a head's query neurons to their places; its value neurons stay free. Qwen3's heads share a norm."""


@pytest.mark.parametrize("name", FAMILIES)
def test_what_may_change_places(name: str) -> None:
    """Permuted hidden neurons, heads, or neurons within a head would change the forecast of a network that computes the same."""
    model = FAMILIES[name]()
    wiring = wire(model)
    for parameter in (label for label, _ in model.named_parameters() if label.endswith(MLP)):
        check(model, wiring, rolled(targets(wiring, parameter)))
    for layer in layers_with_heads(wiring):
        if name != "qwen3":
            check(model, wiring, swapped(layer[0], layer[2]))
        for neurons in layer[1][2 if name in ROTARY else 1 :]:
            check(model, wiring, rolled(neurons))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_forecasts_do_not_depend_on_the_order_of_heads(name: str, shared: Path) -> None:
    """The forecast would depend on how heads, or neurons within one, happen to be numbered: f(permuted) is the permuted f."""
    engine = StreamingEngine(load_checkpoint(shared / "checkpoints" / "nino_no_posw.pt"))
    model = FAMILIES[name]().float()
    wiring, weights = wire(model), flat(model)
    torch.manual_seed(0)
    states = torch.stack([weights + 0.05 * step * torch.randn_like(weights) for step in range(5)])
    features = 0.2 * torch.randn(wiring.neurons, 8)
    plain = engine.forecast(wiring, states, horizons=(1, 40), node_pe=features)
    change = (plain - states[-1]).norm()
    for layer in attention_layers(wiring):
        for moves in (swapped(layer[0], layer[3]), rolled(layer[1][1]), rolled(layer[2][2])):
            order = permutation(wiring, moves)
            place = weight_order(wiring, order)
            moved = engine.forecast(wiring, states[:, place], horizons=(1, 40), node_pe=features[order])
            assert (moved - plain[:, place]).norm() / change < 1e-5
            misled = engine.forecast(wiring, states[:, place], horizons=(1, 40), node_pe=features)
            assert (misled - plain[:, place]).norm() / change > 1e-4


def test_heads_that_share_values() -> None:
    """Query heads of one group may change places, and their common values."""
    model = FAMILIES["mistral"](num_key_value_heads=2)
    wiring = wire(model)
    for layer in layers_with_heads(wiring):
        check(model, wiring, swapped(layer[2], layer[3]))
        check(model, wiring, rolled(layer[0][2]))
    llamas = wire(FAMILIES["llama"](num_key_value_heads=2))
    assert llamas.blocks == wire(model).blocks


def test_heads_do_not_mix() -> None:
    """A neuron could move from one head to another, although that changes what the network computes."""
    model = FAMILIES["gpt2"]()
    wiring = wire(model)
    first, second = layers_with_heads(wiring)[0][:2]
    with pytest.raises(ValueError, match=r"not one to one|structural|two ways"):
        weight_order(wiring, permutation(wiring, dict(zip((first[1][0], second[1][0]), (second[1][0], first[1][0]), strict=True))))
