"""A forecaster in a package of its own: each weight repeats its last movement.

pip install examples/own_forecaster        # then forecaster="newest", in this process or on a server where it is installed
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nowcast_server.forecasters import Forecaster
from protos.wiring import Wiring


class Newest(Forecaster):
    """Add the movement of the last interval, once for each interval ahead."""

    name = "newest"
    glide_horizon = 1  # gliding asks for one interval ahead

    def predict(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: tuple[int, ...]) -> Tensor:
        """Forecast (len(horizons), n) float32 from snapshots (n,), oldest first; arguments have been checked."""
        del wiring  # a forecaster may look at the network's graph; this one does not
        before, last = states[-2].float(), states[-1].float()
        return torch.stack([last + horizon * (last - before) for horizon in horizons])
