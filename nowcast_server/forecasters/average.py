"""`average`: the mean of the context, whatever the horizon."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from nowcast_server.forecasters.base import Forecaster, Horizons, stacked
from protos.wiring import Wiring


class Average(Forecaster):
    """Forecasts the mean of the snapshots, at every horizon: latest-weight averaging."""

    name: ClassVar[str] = "average"

    def predict(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: Horizons, node_pe: Tensor | None) -> Tensor:
        del wiring, node_pe
        return stacked(states).mean(dim=0).repeat(len(horizons), 1)
