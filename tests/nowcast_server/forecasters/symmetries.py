"""Permutations of hidden neurons that leave a network's function as it is, for each family of the parity fixtures.

A permutation is an index into the flat parameter vector: `permuted = flat[permutation]`.

Two things follow from the published graphs, which `wire` reproduces edge for edge. A key's bias points to the residual stream
there, so it stays in its place when heads are shuffled; the function allows that, because softmax takes no notice of a key's bias.
And Llama's keys are tied to the first queries rather than to their own group's: its heads are not alike, and stay where they are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Index = dict[str, Tensor]


def symmetry(model: nn.Module, meta: dict[str, Any], *, seed: int) -> Tensor:
    """A random symmetry of `model`: (n,) int64."""
    index: Index = {}
    start = 0
    for name, parameter in model.named_parameters():
        index[name] = torch.arange(start, start + parameter.numel()).view(parameter.shape)
        start += parameter.numel()
    _FAMILIES[meta["family"]](index, meta, torch.Generator().manual_seed(seed))
    return torch.cat([places.flatten() for places in index.values()])


def _reorder(index: Index, order: Tensor, *places: tuple[str, int]) -> None:
    for name, dim in places:
        if name in index:
            index[name] = index[name].index_select(dim, order)


def _shuffle(count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator)


def _heads(order: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Rows of an attention tensor, heads in the given order and each head's own neurons shuffled."""
    return torch.cat([head * size + _shuffle(size, generator) for head in order.tolist()])


def _mlp(index: Index, meta: dict[str, Any], generator: torch.Generator) -> None:
    for layer, width in enumerate(meta["dims"][1:-1]):
        at, following = f"{2 * layer}", f"{2 * layer + 2}.weight"
        _reorder(index, _shuffle(width, generator), (f"{at}.weight", 0), (f"{at}.bias", 0), (following, 1))


def _conv(index: Index, meta: dict[str, Any], generator: torch.Generator) -> None:
    layers = ["fc.0", "fc.2", "fc.4", "fc.8"]
    for layer, following, width in zip(layers, layers[1:], meta["hid"], strict=False):
        _reorder(index, _shuffle(width, generator), (f"{layer}.weight", 0), (f"{layer}.bias", 0), (f"{following}.weight", 1))


def _conv_bn(index: Index, meta: dict[str, Any], generator: torch.Generator) -> None:
    for layers, following, width in ((("net.0", "net.1"), "net.3", 5), (("net.3", "net.4"), "net.8", 7)):
        places = [(f"{layer}.{kind}", 0) for layer in layers for kind in ("weight", "bias")]
        _reorder(index, _shuffle(width, generator), *places, (f"{following}.weight", 1))


def _gpt2(index: Index, meta: dict[str, Any], generator: torch.Generator) -> None:
    width, heads = meta["n_embd"], meta["n_head"]
    for layer in range(meta["n_layer"]):
        block = f"transformer.h.{layer}"
        order = _shuffle(heads, generator)
        queries, values = (_heads(order, width // heads, generator) for _ in range(2))
        _reorder(index, torch.cat((queries, width + queries, 2 * width + values)), (f"{block}.attn.c_attn.weight", 1))
        _reorder(index, torch.cat((queries, width + torch.arange(width), 2 * width + values)), (f"{block}.attn.c_attn.bias", 0))
        _reorder(index, values, (f"{block}.attn.c_proj.weight", 0))
        hidden = _shuffle(4 * width, generator)
        _reorder(index, hidden, (f"{block}.mlp.c_fc.weight", 1), (f"{block}.mlp.c_fc.bias", 0), (f"{block}.mlp.c_proj.weight", 0))


def _llama(index: Index, meta: dict[str, Any], generator: torch.Generator) -> None:
    for layer in range(meta["num_hidden_layers"]):
        block = f"model.layers.{layer}.mlp"
        hidden = _shuffle(meta["intermediate_size"], generator)
        _reorder(index, hidden, *((f"{block}.{kind}_proj.weight", 0) for kind in ("gate", "up")), (f"{block}.down_proj.weight", 1))


def _bert(index: Index, meta: dict[str, Any], generator: torch.Generator) -> None:
    width, heads = meta["hidden_size"], meta["num_attention_heads"]
    for layer in range(meta["num_hidden_layers"]):
        block = f"bert.encoder.layer.{layer}"
        order = _shuffle(heads, generator)
        queries, values = (_heads(order, width // heads, generator) for _ in range(2))
        attention = f"{block}.attention.self"
        _reorder(index, queries, *((f"{attention}.{name}", 0) for name in ("query.weight", "query.bias", "key.weight")))
        _reorder(index, values, (f"{attention}.value.weight", 0), (f"{attention}.value.bias", 0))
        _reorder(index, values, (f"{block}.attention.output.dense.weight", 1))
        hidden = _shuffle(meta["intermediate_size"], generator)
        dense = f"{block}.intermediate.dense"
        _reorder(index, hidden, (f"{dense}.weight", 0), (f"{dense}.bias", 0), (f"{block}.output.dense.weight", 1))


_FAMILIES: dict[str, Callable[[Index, dict[str, Any], torch.Generator], None]] = {
    "mlp": _mlp,
    "conv": _conv,
    "conv_bn": _conv_bn,
    "gpt2": _gpt2,
    "llama": _llama,
    "bert": _bert,
}
