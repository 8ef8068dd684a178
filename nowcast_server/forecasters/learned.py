"""What the learned forecasters share: a checkpoint, and an engine that computes its model."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Protocol

import torch
from torch import Tensor

from nowcast_server.forecasters.base import Forecaster, Horizons
from nowcast_server.nino.checkpoint import Checkpoint
from nowcast_server.nino.options import CheckpointError
from nowcast_server.nino.precision import Precision
from protos.errors import BadRequest
from protos.wiring import Wiring

DEFAULT_ENGINE: Final = "streaming"
EDGES_PER_S: Final = 2e6
"""That one core of a CPU computes; structure alone is at 2.5e6 with `nino-base`."""
CUDA_LANES: Final = 40
"""As many cores is a GPU worth, at least."""


class Engine(Protocol):
    """Computes a checkpoint's model. Must write to no argument and serve several threads at once."""

    def forecast(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: Horizons, node_pe: Tensor | None) -> Tensor:
        """Checked arguments, raw snapshots (n,) of any floating dtype to (len(horizons), n)."""

    def memory_bytes(self, wiring: Wiring, *, horizons: int) -> int:
        """An upper estimate of what a forecast takes besides the states, result included."""


class EngineType(Protocol):
    """How an engine is made."""

    def __call__(self, checkpoint: Checkpoint, *, device: str | torch.device, precision: Precision) -> Engine: ...


class LearnedForecaster(Forecaster):
    """A forecaster with weights.

    Args:
        checkpoint: the weights.
        device: where to compute.
        engine: a key of `engines()`.
        precision: of the streaming engine's products.

    Raises:
        CheckpointError: the checkpoint is of the other kind of model.
        BadRequest: no such engine.
    """

    needs_checkpoint: ClassVar[bool] = True
    glide_horizon = 40
    graph: ClassVar[bool]
    """Whether its checkpoints are graph networks."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | torch.device = "cpu",
        engine: str = DEFAULT_ENGINE,
        precision: Precision = "float32",
    ) -> None:
        if checkpoint.options.graph != self.graph:
            other = "nino" if checkpoint.options.graph else "wnn"
            raise CheckpointError(f"{checkpoint.name} is a checkpoint for the forecaster {other!r}", field="checkpoint")
        known = self.engines()
        if engine not in known:
            raise BadRequest(f"engine {engine!r} is not one of {tuple(known)}", field="engine")
        self.device = torch.device(device)
        self.checkpoint = checkpoint
        self.context = checkpoint.options.context
        self.max_horizon = checkpoint.options.max_horizon
        self.weights_bytes = 2 * 4 * checkpoint.size  # as they came, and as the engine folds them
        self._engine = known[engine](checkpoint, device=device, precision=precision)

    def working_bytes(self, wiring: Wiring, *, context: int) -> int:
        del context  # no learned engine copies the states
        return self._engine.memory_bytes(wiring, horizons=0)

    def work_s(self, wiring: Wiring, *, context: int) -> float:
        """From the edges alone: those without weights take as long, and have no upload that would bound their number."""
        del context
        lanes = CUDA_LANES if self.device is not None and self.device.type == "cuda" else torch.get_num_threads()
        return (wiring.edges if self.graph else wiring.size) / (EDGES_PER_S * lanes)

    @classmethod
    @abstractmethod
    def reference(cls) -> EngineType:
        """The plain model; imported when called."""

    @classmethod
    def engines(cls) -> Mapping[str, EngineType]:
        """The engines there are, by name; imported when called."""
        from nowcast_server.nino.engine import StreamingEngine

        return {DEFAULT_ENGINE: StreamingEngine, "reference": cls.reference()}

    def predict(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: Horizons, node_pe: Tensor | None) -> Tensor:
        return self._engine.forecast(wiring, states, horizons=horizons, node_pe=node_pe)
