"""What a NiNo or WNN model is made of: its options, and the tensors they imply."""

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Final, Self

from protos.errors import NowcastError
from protos.wiring import MAX_SLOTS

WNN_LAYERS: Final = 4
EDGE_TYPES: Final = 15  # rows of the edge type embedding: every `EdgeType`, and one that is never used

EPSILON: Final = 1e-6
"""Added to a scale before dividing by it, never when multiplying back: what the published checkpoints were trained with."""

Shape = tuple[int, ...]


class CheckpointError(NowcastError):
    """The file is not a checkpoint of this project's models; the detail names the option or tensor, and what to do."""

    code, status, title = "bad_checkpoint", 500, "The checkpoint cannot be used"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Options of one model, as a checkpoint's header stores them."""

    graph: bool = True  # True for NiNo (a graph network), False for WNN (an MLP for each parameter alone)
    context: int = 5  # snapshots c a forecast is made from
    max_horizon: int = 40  # horizons K the model gives, 1..K
    hidden: int = 128  # width H
    layers: int = 3  # message-passing layers of NiNo. The last one updates no edges, so it reaches no forecast.
    towers: int = 1  # independent groups of H / towers channels in each message
    slots: int = MAX_SLOTS  # the most weights an edge may carry, 9 for 3x3 kernels
    laplacian: int = 8  # Laplacian features of a neuron
    vocabulary: int = 0  # word positions that are embedded as node features; 0 for none

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise CheckpointError(f"option {name} = {getattr(self, name)}: must be {least} to {most}", field=name)
        if self.hidden % self.towers:
            raise CheckpointError(f"option towers = {self.towers} must divide hidden = {self.hidden}", field="towers")

    @property
    def width_in(self) -> int:
        """Numbers that enter for one edge: every slot's context for NiNo, one parameter's for WNN."""
        return self.context * (self.slots if self.graph else 1)

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read the options by name. A CheckpointError names the one that is not supported."""
        if not isinstance(data, dict):
            raise CheckpointError("the options must be an object", field="options")
        kinds = {field.name: type(field.default) for field in fields(cls)}
        for name, value in data.items():
            if name in _FIXED:
                if value != _FIXED[name]:
                    raise CheckpointError(f"option {name} = {value!r}: only {_FIXED[name]!r} is supported", field=name)
            elif name not in kinds:
                raise CheckpointError(f"unknown option {name!r}: a newer version of nowcast may read this file", field=name)
            elif type(value) is not kinds[name]:
                raise CheckpointError(f"option {name} = {value!r} must be a {kinds[name].__name__}", field=name)
        return cls(**{name: value for name, value in data.items() if name in kinds})


_FIXED: Final = {
    "edge_types": EDGE_TYPES,
    "activation": "silu",
    "input_layers": 1,
    "final_edge_update": False,
    "residual": True,
    "scaling": "std",
    "update_scale": 1.0,
}
"""Options of the published code, and of files written before 0.2, that every checkpoint leaves as they are."""

_LIMITS: Final[dict[str, tuple[int, int]]] = {
    "context": (2, 1000),
    "max_horizon": (1, 100_000),
    "hidden": (1, 100_000),
    "layers": (1, 100),
    "towers": (1, 100),
    "slots": (1, 1000),
    "laplacian": (1, 256),
    "vocabulary": (0, 10_000_000),
}
"""A hundred bytes of a header could otherwise ask for a model that fills the memory."""


def tensor_shapes(options: ModelOptions) -> dict[str, Shape]:
    """Names and shapes of the model's tensors, known without building it."""
    hidden, shapes = options.hidden, dict[str, Shape]()
    shapes["edge_type_embedding.weight"] = (EDGE_TYPES, hidden)
    _mlp(shapes, "edge_in", [options.width_in, hidden])
    if not options.graph:
        _mlp(shapes, "horizons_out", [hidden] * WNN_LAYERS + [options.max_horizon])
        return shapes
    _mlp(shapes, "node_in", [options.laplacian, hidden])
    if options.vocabulary:
        shapes["word_embedding.weight"] = (options.vocabulary + 1, hidden)
    for layer in range(options.layers):
        _convolution(shapes, f"convs.{layer}", options)
    for layer in range(options.layers - 1):
        for name in ("edge", "source", "target", "out"):
            _linear(shapes, f"edge_updates.{layer}.{name}", hidden, hidden)
    _mlp(shapes, "edge_out", [hidden, hidden, options.slots * options.max_horizon])
    return shapes


def _convolution(shapes: dict[str, Shape], prefix: str, options: ModelOptions) -> None:
    tower = options.hidden // options.towers
    _linear(shapes, f"{prefix}.modulation", options.hidden, 2 * tower)
    for index in range(options.towers):
        _linear(shapes, f"{prefix}.pre.{index}", 2 * tower, tower)
        _linear(shapes, f"{prefix}.post.{index}", 2 * tower, tower)
    _linear(shapes, f"{prefix}.out", options.hidden, options.hidden)


def _mlp(shapes: dict[str, Shape], prefix: str, widths: list[int]) -> None:
    for index, (width_in, width_out) in enumerate(pairwise(widths)):
        _linear(shapes, f"{prefix}.{2 * index}", width_in, width_out)  # odd positions hold the activations


def _linear(shapes: dict[str, Shape], prefix: str, width_in: int, width_out: int) -> None:
    shapes[f"{prefix}.weight"] = (width_out, width_in)
    shapes[f"{prefix}.bias"] = (width_out,)
