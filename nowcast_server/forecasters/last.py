"""`last`: nothing changes. The yardstick of skill."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from nowcast_server.forecasters.base import Forecaster, Horizons
from protos.wiring import Wiring


class Last(Forecaster):
    """Forecasts the last snapshot, at every horizon."""

    name: ClassVar[str] = "last"

    def predict(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: Horizons, node_pe: Tensor | None) -> Tensor:
        del wiring, node_pe
        return states[-1].to(torch.float32).repeat(len(horizons), 1)
