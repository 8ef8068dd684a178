"""What a NiNo or WNN model is made of: its options, and the tensors they imply."""

from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, Final, Self

from protos.errors import NowcastError
from protos.wiring import MAX_SLOTS

SCALINGS: Final = ("std", "std-param", "min-max")
ACTIVATIONS: Final = ("silu", "relu", "gelu", "tanh")
WNN_LAYERS: Final = 4
EDGE_TYPES: Final = 15
"""Rows of the published edge type embedding: every `EdgeType`, and one that is never used."""

Shape = tuple[int, ...]


class CheckpointError(NowcastError):
    """The file is not a checkpoint of this project's models; the detail names the option or tensor, and what to do."""

    code, status, title = "bad_checkpoint", 500, "The checkpoint cannot be used"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Options of one model, as a checkpoint's header stores them.

    Args:
        graph: True for NiNo (a graph network), False for WNN (an MLP for each parameter alone).
        context: snapshots c a forecast is made from.
        max_horizon: horizons K the model gives, 1..K.
        hidden: width H.
        layers: message-passing layers of NiNo.
        towers: independent groups of H / towers channels in each message.
        slots: the most weights an edge may carry, 9 for 3x3 kernels.
        edge_types: size of the edge type embedding; 0 for none (the plain WNN).
        laplacian: Laplacian features of a neuron; 0 for none.
        vocabulary: word positions that are embedded as node features; 0 for none.
        activation: between linear layers.
        input_layers: 1 if the inputs are projected linearly, 2 if by an MLP.
        final_edge_update: whether the last layer updates edges too. If not, that layer's convolution reaches no forecast.
        residual: forecasts are added to the last snapshot.
        scaling: how parameters are standardised, see `nowcast_server.nino.standardise`.
        update_scale: factor on the model's output before it is added to the last snapshot.
    """

    graph: bool = True
    context: int = 5
    max_horizon: int = 40
    hidden: int = 128
    layers: int = 3
    towers: int = 1
    slots: int = MAX_SLOTS
    edge_types: int = EDGE_TYPES
    laplacian: int = 8
    vocabulary: int = 0
    activation: str = "silu"
    input_layers: int = 1
    final_edge_update: bool = False
    residual: bool = True
    scaling: str = "std"
    update_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            if not least <= getattr(self, name) <= most:  # NaN neither
                raise CheckpointError(f"option {name} = {getattr(self, name)}: must be {least} to {most}", field=name)
        if self.hidden % self.towers:
            raise CheckpointError(f"option towers = {self.towers} must divide hidden = {self.hidden}", field="towers")
        if self.edge_types not in (0, EDGE_TYPES):
            detail = f"option edge_types = {self.edge_types}: must be {EDGE_TYPES}, or 0 if types are not told apart"
            raise CheckpointError(detail, field="edge_types")
        if self.graph and not (self.laplacian or self.vocabulary):
            raise CheckpointError("options laplacian and vocabulary are both 0: neurons have no features", field="laplacian")
        for name, known in (("activation", ACTIVATIONS), ("scaling", SCALINGS), ("input_layers", (1, 2))):
            if getattr(self, name) not in known:
                raise CheckpointError(f"option {name} = {getattr(self, name)!r} is not one of {known}", field=name)

    @property
    def edge_updates(self) -> int:
        """How many layers update edges; convolutions from this one on reach node embeddings only."""
        return self.layers if self.final_edge_update else self.layers - 1

    @property
    def width_in(self) -> int:
        """Numbers that enter for one edge: every slot's context for NiNo, one parameter's for WNN."""
        return self.context * (self.slots if self.graph else 1)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read `to_dict`'s form.

        Raises:
            CheckpointError: an option is unknown or of the wrong type.
        """
        if not isinstance(data, dict):
            raise CheckpointError("the options must be an object", field="options")
        kinds = {field.name: type(field.default) for field in fields(cls)}
        for name, value in data.items():
            if name not in kinds:
                raise CheckpointError(f"unknown option {name!r}: a newer version of nowcast may read this file", field=name)
            if type(value) is not kinds[name] and not (kinds[name] is float and type(value) is int):
                raise CheckpointError(f"option {name} = {value!r} must be a {kinds[name].__name__}", field=name)
        return cls(**data)


_LIMITS: Final[dict[str, tuple[float, float]]] = {
    "context": (2, 1000),
    "max_horizon": (1, 100_000),
    "hidden": (1, 100_000),
    "layers": (1, 100),
    "towers": (1, 100),
    "slots": (1, 1000),
    "laplacian": (0, 256),
    "vocabulary": (0, 10_000_000),
    "update_scale": (-1e6, 1e6),
}
"""Of every number. A hundred bytes of a header could otherwise ask for a model that fills the memory."""


def tensor_shapes(options: ModelOptions) -> dict[str, Shape]:
    """Names and shapes of the model's tensors, known without building it."""
    hidden, shapes = options.hidden, dict[str, Shape]()
    if options.edge_types:
        shapes["edge_type_embedding.weight"] = (options.edge_types, hidden)
    _mlp(shapes, "edge_in", [options.width_in] + [hidden] * options.input_layers)
    if not options.graph:
        _mlp(shapes, "horizons_out", [hidden] * WNN_LAYERS + [options.max_horizon])
        return shapes
    if options.laplacian:
        _mlp(shapes, "node_in", [options.laplacian] + [hidden] * options.input_layers)
    if options.vocabulary:
        shapes["word_embedding.weight"] = (options.vocabulary + 1, hidden)
    for layer in range(options.layers):
        _convolution(shapes, f"convs.{layer}", options)
    for layer in range(options.edge_updates):
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
