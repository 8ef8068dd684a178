"""The message-passing operator: a neighbourhood mean of messages that the edges modulate."""

from typing import cast

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing


class EdgeModulatedConv(MessagePassing):  # type: ignore[misc]  # torch_geometric is untyped here
    r"""The edge-modulated convolution of Neural Graphs (Kofinas et al., ICLR 2024, arXiv 2403.12143), as NiNo uses it: principal
    neighbourhood aggregation (Corso et al., 2020, arXiv 2004.05718) with the mean alone and no degree scalers.

    .. math::
        m_{st} &= (S\,a_{st} + s_0) \odot (W_t x_t + W_s x_s + b) + (Z\,a_{st} + z_0)

        x'_t &= O\,\Big(P\,\Big[x_t,\; \tfrac{1}{|\mathcal{N}(t)|} \sum_{s \in \mathcal{N}(t)} m_{st}\Big] + p\Big) + o

    With T towers, channels fall into T groups of H / T: each has its own :math:`W_t, W_s, b, P, p`; the modulation
    :math:`S, Z` is shared between them, and O mixes them.

    Args:
        hidden: channels H of neurons and edges.
        towers: groups T of channels.

    Shapes:
        - **input:** neurons `x` (N, H), `edge_index` (2, E) source and target, `edge_attr` (E, H)
        - **output:** neurons (N, H)
    """

    def __init__(self, hidden: int, *, towers: int = 1) -> None:
        super().__init__(aggr="mean", node_dim=0)
        self.towers, self.width = towers, hidden // towers
        self.modulation = nn.Linear(hidden, 2 * self.width)
        self.pre = nn.ModuleList(nn.Linear(2 * self.width, self.width) for _ in range(towers))
        self.post = nn.ModuleList(nn.Linear(2 * self.width, self.width) for _ in range(towers))
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        x = x.view(-1, self.towers, self.width)
        to_target, to_source = self._split(x)
        scale, shift = self.modulation(edge_attr)[:, None].chunk(2, dim=-1)  # (E, 1, H / T) each
        mean = self.propagate(edge_index, at_target=to_target, at_source=to_source, scale=scale, shift=shift)
        both = torch.cat((x, mean), dim=-1)  # (N, T, 2 H / T)
        towers = [post(both[:, tower]) for tower, post in enumerate(self.post)]
        return cast("Tensor", self.out(torch.cat(towers, dim=-1)))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # W [x_t, x_s] = W_t x_t + W_s x_s: once a neuron instead of once an edge
        targets, sources = [], []
        for tower, pre in enumerate(self.pre):
            target, source = cast("nn.Linear", pre).weight.chunk(2, dim=1)
            targets.append(nn.functional.linear(x[:, tower], target, cast("nn.Linear", pre).bias))
            sources.append(nn.functional.linear(x[:, tower], source))
        return torch.stack(targets, dim=1), torch.stack(sources, dim=1)  # (N, T, H / T)

    def message(self, at_target_i: Tensor, at_source_j: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """PyG gathers `at_target` for each edge's target and `at_source` for its source: (E, T, H / T)."""
        return scale * (at_target_i + at_source_j) + shift
