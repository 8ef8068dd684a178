"""The forecasters with weights: `nino`, the graph network, and `wnn`, an MLP for each parameter alone."""

from collections.abc import Sequence
from typing import ClassVar, Final

import torch
from torch import Tensor

from nowcast_server.forecasters.base import CPU, CUDA_LANES, Forecaster, Horizons
from nowcast_server.nino.checkpoint import Checkpoint, CheckpointError
from nowcast_server.nino.engine import StreamingEngine
from nowcast_server.nino.laplacian import features_bytes
from protos.wiring import Wiring

EDGES_PER_S: Final = 2e6  # that one core of a CPU computes; structure alone is at 2.5e6 with `nino-base`


class LearnedForecaster(Forecaster):
    """A forecaster with the weights of a checkpoint, that computes on a device."""

    glide_horizon = 40
    graph: ClassVar[bool]  # whether its checkpoints are graph networks

    def __init__(self, checkpoint: Checkpoint, *, device: str | torch.device = "cpu") -> None:
        if checkpoint.options.graph != self.graph:
            other = "nino" if checkpoint.options.graph else "wnn"
            raise CheckpointError(f"{checkpoint.name} is a checkpoint for the forecaster {other!r}", field="checkpoint")
        self.device = torch.device(device)
        self.checkpoint = checkpoint
        self.context = checkpoint.options.context
        self.max_horizon = checkpoint.options.max_horizon
        self.max_slots = checkpoint.options.slots if self.graph else None
        self.weights_bytes = 2 * 4 * checkpoint.size  # as they came, and as the engine folds them
        self._engine = StreamingEngine(checkpoint, device=device)

    def working_bytes(self, wiring: Wiring, *, context: int) -> int:
        # the engine does not copy the states
        return self._engine.memory_bytes(wiring, horizons=0) + (self.host_bytes(wiring) if self.device == CPU else 0)

    def host_bytes(self, wiring: Wiring) -> int:
        return features_bytes(wiring, count=self.checkpoint.options.laplacian) if self.graph else 0

    def work_s(self, wiring: Wiring, *, context: int) -> float:
        """From the edges alone: those without weights take as long, and have no upload that would bound their number."""
        lanes = CUDA_LANES if self.device is not None and self.device.type == "cuda" else torch.get_num_threads()
        return (wiring.edges if self.graph else wiring.size) / (EDGES_PER_S * lanes)

    def predict(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: Horizons) -> Tensor:
        return self._engine.forecast(wiring, states, horizons=horizons)


class Nino(LearnedForecaster):
    """Forecasts with NiNo: every weight from its own past and the neurons it connects (arXiv 2409.04434)."""

    name = "nino"
    graph: ClassVar[bool] = True


class Wnn(LearnedForecaster):
    """Forecasts with WNN+: every weight from its own past (Jang et al., ICML 2023)."""

    name = "wnn"
    graph: ClassVar[bool] = False
