"""`nino`: the graph network."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from nowcast_server.forecasters.base import Horizons
from nowcast_server.forecasters.learned import DEFAULT_ENGINE, EngineType, LearnedForecaster, streaming_engines
from nowcast_server.nino.checkpoint import Checkpoint
from protos.errors import BadRequest
from protos.wiring import Wiring


class Nino(LearnedForecaster):
    """Forecasts with NiNo: every weight in the light of the neurons it joins (arXiv 2409.04434)."""

    name: ClassVar[str] = "nino"
    graph: ClassVar[bool] = True

    def __init__(self, checkpoint: Checkpoint, *, device: str | torch.device = "cpu", engine: str = DEFAULT_ENGINE) -> None:
        super().__init__(checkpoint, device=device, engine=engine)
        self.laplacian = checkpoint.options.laplacian

    @classmethod
    def engines(cls) -> Mapping[str, EngineType]:
        from nowcast_server.nino.reference import NinoReference

        return {**streaming_engines(), "reference": NinoReference}

    def predict(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: Horizons, node_pe: Tensor | None) -> Tensor:
        slots = self.checkpoint.options.slots
        if wiring.slots > slots:
            detail = f"edges of this wiring carry {wiring.slots} weights; {self.checkpoint.name} was made for {slots}"
            raise BadRequest(detail, field="wiring")
        return super().predict(wiring, states, horizons=horizons, node_pe=node_pe)
