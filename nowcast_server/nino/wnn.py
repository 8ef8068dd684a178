"""WNN: a small MLP that forecasts each parameter from its own past alone."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from nowcast_server.nino.layers import Mlp, initialise
from nowcast_server.nino.options import WNN_LAYERS, ModelOptions


class Wnn(nn.Module):
    r"""Weight nowcaster network (Jang et al., ICML 2023); with edge types it is WNN+ (Knyazev et al., arXiv 2409.04434).

    .. math::
        \hat z_k = z_c + u\,\mathrm{MLP}_k(P z + p + \tau_{type})

    for the c standardised snapshots z of one parameter.

    Shapes:
        - **input:** `states` (n, context), `edge_type` (n,) of the edge each parameter sits on, unused by the plain WNN
        - **output:** (n, horizons), standardised as the input
    """

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        assert not options.graph
        self.options = options
        hidden, act = options.hidden, options.activation
        self.edge_type_embedding = nn.Embedding(options.edge_types, hidden) if options.edge_types else None
        self.edge_in = Mlp([options.width_in] + [hidden] * options.input_layers, act=act)
        self.horizons_out = Mlp([hidden] * WNN_LAYERS + [options.max_horizon], act=act)
        self.apply(initialise)

    def forward(self, states: Tensor, edge_type: Tensor, *, horizons: Sequence[int] | None = None) -> Tensor:
        a = self.edge_in(states)
        if self.edge_type_embedding is not None:
            a = a + self.edge_type_embedding(edge_type)
        change = self._read_out(a, horizons) * self.options.update_scale
        return states[:, -1:] + change if self.options.residual else change

    def _read_out(self, a: Tensor, horizons: Sequence[int] | None) -> Tensor:
        *inner, last = self.horizons_out.children()
        for layer in inner:
            a = layer(a)
        last = cast("nn.Linear", last)
        rows = slice(None) if horizons is None else [horizon - 1 for horizon in horizons]
        return nn.functional.linear(a, last.weight[rows], last.bias[rows])
