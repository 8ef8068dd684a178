"""NiNo, the readable reference."""

from collections.abc import Sequence
from typing import Literal, cast, overload

from torch import Tensor, nn

from nowcast_server.nino.conv import EdgeModulatedConv
from nowcast_server.nino.edge_update import EdgeUpdate
from nowcast_server.nino.layers import Mlp, activation, initialise, project
from nowcast_server.nino.options import ModelOptions


class NiNo(nn.Module):
    r"""Forecasts the weights on the edges of a neural graph, for all horizons at once.

    .. math::
        a^0_{st} &= P\,\mathrm{vec}(z_{st}) + p + \tau_{type(s,t)} \qquad x^0_v = L\,\ell_v + l + \omega_{word(v)}

        x^{i+1} &= \sigma(\mathrm{conv}_i(x^i, a^i)) \qquad a^{i+1} = \mathrm{update}_i(x^{i+1}, a^i)

        \hat z_{st,k} &= z_{st,c} + u\,\big(Q_k\,\sigma(F\,a_{st} + f) + q_k\big)

    for the standardised snapshots :math:`z_{st}` (slots x context) on an edge and the Laplacian features :math:`\ell_v`
    of a neuron.
    The last layer usually updates no edges (`final_edge_update`); its convolution then matters to node embeddings alone and is
    skipped otherwise.

    Source: Knyazev et al., ICLR 2025, arXiv 2409.04434. The forward pass writes to no tensor it did not make, so that one
    instance serves concurrent forecasts of different graphs. A batch of graphs is one disconnected graph, as PyG makes it.

    Shapes (`slots` may be anything up to `options.slots`; absent slots count as zero):
        - **input:** `node_pe` (N, laplacian), `edge_index` (2, E), `edge_type` (E,), `edge_attr` (E, slots, context),
          `word` (N,) word positions, 0 for none, needed if `options.vocabulary`
        - **output:** (E, slots, horizons), standardised as the input;
          with `return_embedding` the neurons (N, hidden) and the edges (E, hidden) after the last layer
    """

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        assert options.graph
        self.options = options
        hidden, act = options.hidden, options.activation
        widths_in = [hidden] * options.input_layers
        self.edge_type_embedding = nn.Embedding(options.edge_types, hidden) if options.edge_types else None
        self.edge_in = Mlp([options.width_in, *widths_in], act=act)
        self.node_in = Mlp([options.laplacian, *widths_in], act=act) if options.laplacian else None
        self.word_embedding = nn.Embedding(options.vocabulary + 1, hidden) if options.vocabulary else None
        self.convs = nn.ModuleList(EdgeModulatedConv(hidden, towers=options.towers) for _ in range(options.layers))
        self.edge_updates = nn.ModuleList(EdgeUpdate(hidden, act=act) for _ in range(options.edge_updates))
        self.edge_out = Mlp([hidden, hidden, options.slots * options.max_horizon], act=act)
        self.act = activation(act)
        self.apply(initialise)

    @overload
    def forward(
        self,
        node_pe: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        edge_attr: Tensor,
        *,
        word: Tensor | None = ...,
        horizons: Sequence[int] | None = ...,
        return_embedding: Literal[False] = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        node_pe: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        edge_attr: Tensor,
        *,
        word: Tensor | None = ...,
        return_embedding: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self,
        node_pe: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        edge_attr: Tensor,
        *,
        word: Tensor | None = None,
        horizons: Sequence[int] | None = None,
        return_embedding: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        x = self._embed_neurons(node_pe, word)
        a = project(self.edge_in, edge_attr.flatten(1))
        if self.edge_type_embedding is not None:
            a = a + self.edge_type_embedding(edge_type)
        updates = len(self.edge_updates)
        for layer, conv in enumerate(self.convs if return_embedding else self.convs[:updates]):
            x = conv(x, edge_index, a)
            if layer < updates:
                x = self.act(x)
                a = self.edge_updates[layer](x, edge_index, a)
        if return_embedding:
            return x, a
        change = self._read_out(a, edge_attr.shape[1], horizons)
        return edge_attr[:, :, -1:] + change if self.options.residual else change

    def _embed_neurons(self, node_pe: Tensor, word: Tensor | None) -> Tensor:
        terms: list[Tensor] = []
        if self.node_in is not None:
            terms.append(self.node_in(node_pe))
        if self.word_embedding is not None:
            assert word is not None
            # words beyond the vocabulary are neurons like any other
            terms.append(self.word_embedding(word.masked_fill(word > self.options.vocabulary, 0)))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    def _read_out(self, a: Tensor, slots: int, horizons: Sequence[int] | None) -> Tensor:
        # only the rows of the last layer that are asked for: (slots, horizons) of (options.slots, max_horizon)
        *inner, last = self.edge_out.children()
        for layer in inner:
            a = layer(a)
        last = cast("nn.Linear", last)
        shape = (self.options.slots, self.options.max_horizon)
        weight, bias = last.weight.view(*shape, -1)[:slots], last.bias.view(shape)[:slots]
        if horizons is not None:
            rows = [horizon - 1 for horizon in horizons]
            weight, bias = weight[:, rows], bias[:, rows]
        change = nn.functional.linear(a, weight.flatten(0, 1), bias.flatten())
        return change.view(len(a), slots, -1) * self.options.update_scale
