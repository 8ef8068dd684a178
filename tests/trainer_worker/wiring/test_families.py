"""Equivariance of the named families: their symmetries map the graph onto itself and keep what the network computes."""

from typing import Any

import numpy as np
import pytest
import torch
from permutations import (
    HeadNeurons,
    Order,
    attention_layers,
    flat,
    load,
    permutation,
    shuffle_head,
    swap_heads,
    targets,
    weight_order,
)
from torch import Tensor, nn

from protos.wiring import EdgeType, Wiring
from trainer_worker.wiring import Layout, describe, wire

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20}
TEXT = {"vocab_size": 19, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


def transformer(model: str, config: str, **sizes: Any) -> nn.Module:
    """A Hugging Face model in double precision with weights everywhere.

    But for the key biases of GPT-2 and BERT: no output depends on them, and the published graphs attach them to other neurons.
    """
    import transformers

    torch.manual_seed(0)
    net = getattr(transformers, model)(getattr(transformers, config)(**sizes)).eval().double()
    for name, parameter in net.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        if model.startswith("Bert") and name.endswith("key.bias"):
            torch.nn.init.zeros_(parameter)
        if name.endswith("c_attn.bias"):
            torch.nn.init.zeros_(parameter.data[len(parameter) // 3 : 2 * len(parameter) // 3])
    return net


def gpt2() -> nn.Module:
    return transformer("GPT2LMHeadModel", "GPT2Config", n_embd=16, n_layer=2, n_head=4, n_positions=12, **TEXT)


def llama(**changes: Any) -> nn.Module:
    return transformer("LlamaForCausalLM", "LlamaConfig", **{**SIZES, **TEXT, "num_key_value_heads": 4, **changes})


def mistral(shared: int = 4) -> nn.Module:
    return transformer("MistralForCausalLM", "MistralConfig", **SIZES, **TEXT, num_key_value_heads=shared)


def qwen3() -> nn.Module:
    return transformer("Qwen3ForCausalLM", "Qwen3Config", **SIZES, **TEXT, num_key_value_heads=4, head_dim=4)


def bert() -> nn.Module:
    return transformer("BertForMaskedLM", "BertConfig", **SIZES, **TEXT, max_position_embeddings=12)


def roberta() -> nn.Module:
    return transformer("RobertaForMaskedLM", "RobertaConfig", **SIZES, **TEXT, max_position_embeddings=12)


def vit() -> nn.Module:
    return transformer("ViTForImageClassification", "ViTConfig", **SIZES, image_size=6, patch_size=3)


FAMILIES = {"gpt2": gpt2, "llama": llama, "mistral": mistral, "qwen3": qwen3, "bert": bert, "roberta": roberta, "vit": vit}
MLP = {"gpt2": "c_fc.weight", "llama": "up_proj.weight", "bert": "intermediate.dense.weight", "vit": "fc1.weight"}


def output(model: nn.Module) -> Tensor:
    """Logits of a fixed batch."""
    torch.manual_seed(1)
    if "vit" in str(model.config.model_type):
        return model(pixel_values=torch.randn(2, 3, 6, 6, dtype=torch.float64)).logits
    return model(input_ids=torch.randint(1, 19, (2, 7))).logits


def check(model: nn.Module, wiring: Wiring, order: Order) -> None:
    """The order is a symmetry of the graph and of the network, and moves something."""
    before, weights = output(model), flat(model)
    place = weight_order(wiring, order)
    moved = weights[place]
    assert not torch.equal(moved, weights)
    load(model, moved)
    torch.testing.assert_close(output(model), before, rtol=1e-9, atol=1e-9)
    load(model, weights)


def layers_with_heads(wiring: Wiring) -> list[list[HeadNeurons]]:
    layers = attention_layers(wiring)
    assert [len(layer) for layer in layers] == [4, 4]
    return layers


@pytest.mark.parametrize("layout", ["published", "traced"])
@pytest.mark.parametrize("name", FAMILIES)
def test_mlp_neurons(name: str, layout: Layout) -> None:
    """Permuting MLP neurons would change the forecast of a network that computes the same."""
    model = FAMILIES[name]()
    report = describe(model, layout=layout)
    assert (report.family is not None) == (layout == "published")
    ending = next(ending for key, ending in MLP.items() if key == (report.family or key) and _has(model, ending))
    for parameter in (label for label, _ in model.named_parameters() if label.endswith(ending)):
        count = len(targets(report.wiring, parameter))
        check(model, report.wiring, permutation(report.wiring, {parameter: np.random.default_rng(0).permutation(count)}))


def _has(model: nn.Module, ending: str) -> bool:
    return any(label.endswith(ending) for label, _ in model.named_parameters())


@pytest.mark.parametrize("layout", ["published", "traced"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "qwen3"])
def test_heads_change_places(name: str, layout: Layout) -> None:
    """Swapping two heads would change the forecast of a network that computes the same."""
    model = FAMILIES[name]()
    wiring = wire(model, layout=layout)
    for layer in layers_with_heads(wiring):
        check(model, wiring, swap_heads(wiring, layer[0], layer[2]))


@pytest.mark.parametrize("layout", ["published", "traced"])
@pytest.mark.parametrize("name", ["gpt2", "bert", "roberta", "vit"])
def test_neurons_within_a_head(name: str, layout: Layout) -> None:
    """Permuting a head's query neurons with its key neurons, or its value neurons, would change the forecast."""
    model = FAMILIES[name]()
    wiring = wire(model, layout=layout)
    for layer in layers_with_heads(wiring):
        for group in range(len(layer[1].groups)):
            check(model, wiring, shuffle_head(wiring, layer[1], group))


@pytest.mark.parametrize("layout", ["published", "traced"])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_values_within_a_head(name: str, layout: Layout) -> None:
    """Rotary positions tie a head's query neurons to their places; its value neurons stay free."""
    model = FAMILIES[name]()
    wiring = wire(model, layout=layout)
    for layer in layers_with_heads(wiring):
        check(model, wiring, shuffle_head(wiring, layer[3], 1))


@pytest.mark.parametrize("layout", ["published", "traced"])
def test_heads_that_share_values(layout: Layout) -> None:
    """Query heads of one group may change places, and their common values; only Llama's published graph cannot say so."""
    model = mistral(shared=2)
    wiring = wire(model, layout=layout)
    for layer in layers_with_heads(wiring):
        check(model, wiring, swap_heads(wiring, layer[2], layer[3]))
        check(model, wiring, shuffle_head(wiring, layer[0], 1))
    llamas = wire(llama(num_key_value_heads=2))
    assert llamas.blocks == wire(model).blocks


def test_heads_do_not_mix() -> None:
    """A neuron could move from one head to another, although that changes what the network computes."""
    model = gpt2()
    wiring = wire(model)
    first, second = layers_with_heads(wiring)[0][:2]
    mixed = HeadNeurons(
        first.node, tuple(np.append(one[:-1], other[-1]) for one, other in zip(first.groups, second.groups, strict=True))
    )
    with pytest.raises(ValueError, match=r"not one to one|structural|two ways"):
        weight_order(wiring, swap_heads(wiring, mixed, second))


@pytest.mark.parametrize("layout", ["published", "traced"])
def test_naive_graph(layout: Layout) -> None:
    """The ablation would not be one: no head neurons, no shared query and key neurons, every weight still wired."""
    model = llama(num_key_value_heads=2)
    wiring = wire(model, heads=False, layout=layout)
    kinds = {block.edge_type for block in wiring.blocks}
    assert EdgeType.HEAD not in kinds
    assert {EdgeType.QUERY, EdgeType.KEY, EdgeType.VALUE} <= kinds
    assert sum(block.size for block in wiring.blocks) == wiring.size
    key = next(block for block in wiring.blocks if block.edge_type == EdgeType.KEY)
    query = next(block for block in wiring.blocks if block.edge_type == EdgeType.QUERY)
    assert key.source == query.source
    assert key.target != query.target


def test_adapters_are_traced() -> None:
    """A known model with foreign parameters in it would be read as if it had none."""
    model = gpt2()
    block = model.transformer.h[0].mlp
    block.c_fc = nn.Sequential(block.c_fc, nn.Linear(64, 64).double())
    report = describe(model)
    assert report.family is None
    assert report.coverage == 1.0


def test_nanogpt() -> None:
    """Karpathy's GPT, whose names are GPT-2's and whose matrices are nn.Linear's, would be read the wrong way round."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_attn, self.c_proj, self.n_head = nn.Linear(8, 24), nn.Linear(8, 8), 2

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(8), Attention(), nn.LayerNorm(8)
            self.mlp = nn.ModuleDict({"c_fc": nn.Linear(8, 32), "c_proj": nn.Linear(32, 8)})

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = {
                "wte": nn.Embedding(11, 8),
                "wpe": nn.Embedding(5, 8),
                "h": nn.ModuleList([Block(), Block()]),
                "ln_f": nn.LayerNorm(8),
            }
            self.transformer = nn.ModuleDict(parts)
            self.lm_head = nn.Linear(8, 11, bias=False)
            self.lm_head.weight = self.transformer.wte.weight

    report = describe(GPT(), layout="published")
    assert report.family == "nanogpt"
    fused = next(row for row in report.rows if row.name == "transformer.h.0.attn.c_attn.weight")
    assert fused.kinds == (EdgeType.QUERY, EdgeType.KEY, EdgeType.VALUE)
    assert report.structure == {"head": 32, "residual": 32}
