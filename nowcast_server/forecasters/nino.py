"""`nino`: the graph network."""

from typing import ClassVar

import torch

from nowcast_server.forecasters.learned import DEFAULT_ENGINE, EngineType, LearnedForecaster
from nowcast_server.nino.checkpoint import Checkpoint
from nowcast_server.nino.laplacian import features_bytes
from nowcast_server.nino.precision import Precision
from protos.wiring import Wiring


class Nino(LearnedForecaster):
    """Forecasts with NiNo: every weight in the light of the neurons it joins (arXiv 2409.04434)."""

    name: ClassVar[str] = "nino"
    graph: ClassVar[bool] = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | torch.device = "cpu",
        engine: str = DEFAULT_ENGINE,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(checkpoint, device=device, engine=engine, precision=precision)
        self.laplacian = checkpoint.options.laplacian
        self.max_slots = checkpoint.options.slots

    def working_bytes(self, wiring: Wiring, *, context: int) -> int:
        own_bytes = super().working_bytes(wiring, context=context)
        return own_bytes + self.host_bytes(wiring) if self.device == torch.device("cpu") else own_bytes

    def host_bytes(self, wiring: Wiring) -> int:
        return features_bytes(wiring, count=self.laplacian)

    @classmethod
    def reference(cls) -> EngineType:
        from nowcast_server.nino.reference import NinoReference

        return NinoReference
