"""The edge operator: updates edges from the neurons at their ends."""

from typing import cast

from torch import Tensor, nn

from nowcast_server.nino.layers import activation


class EdgeUpdate(nn.Module):
    r"""An MLP of an edge and its two neurons.

    .. math::
        a'_{st} = O\,\sigma(E\,a_{st} + S\,x_s + T\,x_t)

    (each linear map with a bias). Source: Kofinas et al., arXiv 2403.12143.

    Args:
        hidden: channels H of neurons and edges.
        act: the activation.

    Shapes:
        - **input:** neurons `x` (N, H), `edge_index` (2, E) source and target, `edge_attr` (E, H)
        - **output:** edges (E, H)
    """

    def __init__(self, hidden: int, *, act: str = "silu") -> None:
        super().__init__()
        self.edge = nn.Linear(hidden, hidden)
        self.source = nn.Linear(hidden, hidden)
        self.target = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, hidden)
        self.act = activation(act)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        source, target = edge_index
        mixed = self.edge(edge_attr) + self.source(x)[source] + self.target(x)[target]
        return cast("Tensor", self.out(self.act(mixed)))
