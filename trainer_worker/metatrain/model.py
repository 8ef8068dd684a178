"""NiNo and WNN as one would write them down, to be fitted and to hold the server's engine against."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from nowcast_server.nino.checkpoint import EDGE_TYPES, WNN_LAYERS, Checkpoint, ModelOptions

INITIAL_STD: Final = 0.02


class Mlp(nn.Sequential):
    """Linear layers of the given widths with SiLU between them, none after the last."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.SiLU()]
        super().__init__(*layers[:-1])


def initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02^2), biases zero: how NiNo starts its meta-training. Use with `Module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


class EdgeModulatedConv(MessagePassing):  # type: ignore[misc]  # torch_geometric is untyped here
    r"""The edge-modulated convolution of Neural Graphs (Kofinas et al., ICLR 2024, arXiv 2403.12143), as NiNo uses it: principal
    neighbourhood aggregation (Corso et al., 2020, arXiv 2004.05718) with the mean alone and no degree scalers.

    .. math::
        m_{st} &= (S\,a_{st} + s_0) \odot (W_t x_t + W_s x_s + b) + (Z\,a_{st} + z_0)

        x'_t &= O\,\Big(P\,\Big[x_t,\; \tfrac{1}{|\mathcal{N}(t)|} \sum_{s \in \mathcal{N}(t)} m_{st}\Big] + p\Big) + o

    Args:
        hidden: channels H of neurons and edges.

    Shapes:
        - **input:** neurons `x` (N, H), `edge_index` (2, E) source and target, `edge_attr` (E, H)
        - **output:** neurons (N, H)
    """

    def __init__(self, hidden: int) -> None:
        super().__init__(aggr="mean", node_dim=0)
        self.modulation = nn.Linear(hidden, 2 * hidden)
        self.pre = nn.ModuleList([nn.Linear(2 * hidden, hidden)])  # lists of one, as published weights have them
        self.post = nn.ModuleList([nn.Linear(2 * hidden, hidden)])
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        to_target, to_source = self._split(x)
        scale, shift = self.modulation(edge_attr).chunk(2, dim=-1)  # (E, H) each
        mean = self.propagate(edge_index, at_target=to_target, at_source=to_source, scale=scale, shift=shift)
        return cast("Tensor", self.out(self.post[0](torch.cat((x, mean), dim=-1))))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # W [x_t, x_s] = W_t x_t + W_s x_s: once a neuron instead of once an edge
        pre = cast("nn.Linear", self.pre[0])
        target, source = pre.weight.chunk(2, dim=1)
        return nn.functional.linear(x, target, pre.bias), nn.functional.linear(x, source)

    def message(self, at_target_i: Tensor, at_source_j: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """PyG gathers `at_target` for each edge's target and `at_source` for its source: (E, H)."""
        return scale * (at_target_i + at_source_j) + shift


class EdgeUpdate(nn.Module):
    r"""An MLP of an edge and its two neurons, :math:`a'_{st} = O\,\sigma(E\,a_{st} + S\,x_s + T\,x_t)`.

    Each linear map has a bias. Source: Kofinas et al., arXiv 2403.12143.

    Shapes:
        - **input:** neurons `x` (N, H), `edge_index` (2, E) source and target, `edge_attr` (E, H)
        - **output:** edges (E, H)
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.edge = nn.Linear(hidden, hidden)
        self.source = nn.Linear(hidden, hidden)
        self.target = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, hidden)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        source, target = edge_index
        mixed = self.edge(edge_attr) + self.source(x)[source] + self.target(x)[target]
        return cast("Tensor", self.out(self.act(mixed)))


class NiNo(nn.Module):
    r"""Forecasts the weights on the edges of a neural graph, for all horizons at once.

    .. math::
        a^0_{st} &= P\,\mathrm{vec}(z_{st}) + p + \tau_{type(s,t)} \qquad x^0_v = L\,\ell_v + l + \omega_{word(v)}

        x^{i+1} &= \sigma(\mathrm{conv}_i(x^i, a^i)) \qquad a^{i+1} = \mathrm{update}_i(x^{i+1}, a^i)

        \hat z_{st,k} &= z_{st,c} + Q_k\,\sigma(F\,a_{st} + f) + q_k

    for the standardised snapshots :math:`z_{st}` (slots x context) on an edge and the Laplacian features :math:`\ell_v`
    of a neuron. The last convolution has no edge update after it and reaches no forecast; published checkpoints hold it.

    Source: Knyazev et al., ICLR 2025, arXiv 2409.04434. A batch of graphs is one disconnected graph, as PyG makes it.

    Shapes (`slots` may be anything up to `options.slots`; absent slots count as zero):
        - **input:** `node_pe` (N, laplacian), `edge_index` (2, E), `edge_type` (E,), `edge_attr` (E, slots, context),
          `word` (N,) word positions, 0 for none, needed if `options.vocabulary`
        - **output:** (E, slots, horizons), standardised as the input
    """

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        assert options.graph
        self.options = options
        hidden = options.hidden
        self.edge_type_embedding = nn.Embedding(EDGE_TYPES, hidden)
        self.edge_in = Mlp(options.width_in, hidden)
        self.node_in = Mlp(options.laplacian, hidden)
        self.word_embedding = nn.Embedding(options.vocabulary + 1, hidden) if options.vocabulary else None
        self.convs = nn.ModuleList(EdgeModulatedConv(hidden) for _ in range(options.layers))
        self.edge_updates = nn.ModuleList(EdgeUpdate(hidden) for _ in range(options.layers - 1))
        self.edge_out = Mlp(hidden, hidden, options.slots * options.max_horizon)
        self.act = nn.SiLU()
        self.apply(initialise)

    def forward(
        self,
        node_pe: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        edge_attr: Tensor,
        *,
        word: Tensor | None = None,
        horizons: Sequence[int] | None = None,
    ) -> Tensor:
        _, a = self.embed(node_pe, edge_index, edge_type, edge_attr, word=word)
        return edge_attr[:, :, -1:] + self._read_out(a, edge_attr.shape[1], horizons)

    def embed(
        self, node_pe: Tensor, edge_index: Tensor, edge_type: Tensor, edge_attr: Tensor, *, word: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Neurons (N, H) and edges (E, H) as the readout finds them."""
        x = self._embed_neurons(node_pe, word)
        first, held = cast("nn.Linear", self.edge_in[0]), edge_attr.flatten(1)
        a = nn.functional.linear(held, first.weight[:, : held.shape[-1]], first.bias) + self.edge_type_embedding(edge_type)
        for conv, update in zip(self.convs, self.edge_updates, strict=False):
            x = self.act(conv(x, edge_index, a))
            a = update(x, edge_index, a)
        return x, a

    def _embed_neurons(self, node_pe: Tensor, word: Tensor | None) -> Tensor:
        x: Tensor = self.node_in(node_pe)
        if self.word_embedding is None:
            return x
        assert word is not None
        # words beyond the vocabulary are neurons like any other
        return x + cast("Tensor", self.word_embedding(word.masked_fill(word > self.options.vocabulary, 0)))

    def _read_out(self, a: Tensor, slots: int, horizons: Sequence[int] | None) -> Tensor:
        # only the rows of the last layer that are asked for: (slots, horizons) of (options.slots, max_horizon)
        first, act, last = self.edge_out.children()
        last = cast("nn.Linear", last)
        shape = (self.options.slots, self.options.max_horizon)
        weight, bias = last.weight.view(*shape, -1)[:slots], last.bias.view(shape)[:slots]
        if horizons is not None:
            rows = [horizon - 1 for horizon in horizons]
            weight, bias = weight[:, rows], bias[:, rows]
        change = nn.functional.linear(act(first(a)), weight.flatten(0, 1), bias.flatten())
        return change.view(len(a), slots, -1)


class Wnn(nn.Module):
    r"""Weight nowcaster network (Jang et al., ICML 2023) with edge types: WNN+ (Knyazev et al., arXiv 2409.04434).

    :math:`\hat z_k = z_c + \mathrm{MLP}_k(P z + p + \tau_{type})` for the c standardised snapshots z of one parameter.

    Shapes:
        - **input:** `states` (n, context), `edge_type` (n,) of the edge each parameter sits on
        - **output:** (n, horizons), standardised as the input
    """

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        assert not options.graph
        self.options = options
        self.edge_type_embedding = nn.Embedding(EDGE_TYPES, options.hidden)
        self.edge_in = Mlp(options.width_in, options.hidden)
        self.horizons_out = Mlp(*[options.hidden] * WNN_LAYERS, options.max_horizon)
        self.apply(initialise)

    def forward(self, states: Tensor, edge_type: Tensor, *, horizons: Sequence[int] | None = None) -> Tensor:
        a = self.edge_in(states) + self.edge_type_embedding(edge_type)
        *inner, last = self.horizons_out.children()
        for layer in inner:
            a = layer(a)
        last = cast("nn.Linear", last)
        rows = slice(None) if horizons is None else [horizon - 1 for horizon in horizons]
        return states[:, -1:] + nn.functional.linear(a, last.weight[rows], last.bias[rows])


def build(checkpoint: Checkpoint) -> NiNo | Wnn:
    """The model of a checkpoint, in evaluation mode on the CPU, with weights of its own."""
    model = (NiNo if checkpoint.options.graph else Wnn)(checkpoint.options)
    model.load_state_dict(dict(checkpoint.tensors))
    return model.eval()
