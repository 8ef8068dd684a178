"""`nino`: the graph network."""

from collections.abc import Mapping
from typing import ClassVar

import torch

from nowcast_server.forecasters.learned import DEFAULT_ENGINE, EngineType, LearnedForecaster, streaming_engines
from nowcast_server.nino.checkpoint import Checkpoint


class Nino(LearnedForecaster):
    """Forecasts with NiNo: every weight in the light of the neurons it joins (arXiv 2409.04434)."""

    name: ClassVar[str] = "nino"
    graph: ClassVar[bool] = True

    def __init__(self, checkpoint: Checkpoint, *, device: str | torch.device = "cpu", engine: str = DEFAULT_ENGINE) -> None:
        super().__init__(checkpoint, device=device, engine=engine)
        self.laplacian = checkpoint.options.laplacian
        self.max_slots = checkpoint.options.slots

    @classmethod
    def engines(cls) -> Mapping[str, EngineType]:
        from nowcast_server.nino.reference import NinoReference

        return {**streaming_engines(), "reference": NinoReference}
