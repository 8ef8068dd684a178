"""The wiring: a network as a neural graph of dense blocks, small, code-free and hashable.

A network's neurons are numbered 0..N-1; each parameter tensor joins ranges of them. A `Block` is one rectangle (or diagonal) of
edges of one type, with strides that say where each edge's weights lie in its tensor, so that a whole 1B-parameter
network is a few thousand short rows. Every neuron has a self loop besides; it is implied, never listed.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, Self

from protos.errors import BadWiring

MAX_SLOTS = 9  # weights one edge can carry: a 3x3 kernel. Larger kernels are split over parallel edges.
STRUCTURE = -1  # `Block.parameter` of edges that carry no weights (residual connections, attention heads)
MAX_NEURONS = 2**31 - 1
MAX_BLOCKS = 2**20
MAX_NAME = 1024  # characters of a parameter's name


class EdgeType(IntEnum):
    """What an edge's weights are; from 10 on, structure without weights (NiNo, appendix)."""

    LINEAR = 1
    OTHER = 2  # biases, and whatever fits nowhere else
    CONVOLUTION = 3
    NORM = 4
    WORD_EMBEDDING = 5
    POSITION_EMBEDDING = 6
    QUERY = 7
    KEY = 8
    VALUE = 9
    RESIDUAL = 10
    HEAD = 11
    SELF_LOOP = 13

    @property
    def words(self) -> str:
        """Its name, for people."""
        return self.name.lower().replace("_", " ")


_BLOCK_TYPES = frozenset(int(kind) for kind in EdgeType) - {int(EdgeType.SELF_LOOP)}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the flat parameter vector, in the order of `named_parameters()`."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Block:
    """Edges of one type from a range of source neurons to a range of target neurons.

    A dense block joins every source to every target; a diagonal one joins source i to target i (`sources == targets`).
    The weight in `slot` of the edge from the i-th source to the j-th target lies in the flattened tensor `parameter` at
    `offset + i * source_stride + j * target_stride + slot * slot_stride` (on a diagonal j = i).
    Structure has `parameter` = -1 and no weights: `slots` = 1 and its strides and offset are 0.
    """

    edge_type: int
    source: int
    sources: int
    target: int
    targets: int
    diagonal: bool = False
    parameter: int = STRUCTURE
    offset: int = 0
    source_stride: int = 0
    target_stride: int = 0
    slots: int = 1
    slot_stride: int = 0

    @property
    def edges(self) -> int:
        return self.sources if self.diagonal else self.sources * self.targets

    @property
    def size(self) -> int:
        """How many weights the block holds."""
        return 0 if self.parameter == STRUCTURE else self.edges * self.slots

    @property
    def last(self) -> int:
        """The largest position in the flattened tensor that the block reads."""
        strides = (self.sources - 1) * self.source_stride + (self.slots - 1) * self.slot_stride
        return self.offset + strides + (self.targets - 1) * self.target_stride


_FIELDS = tuple(field.name for field in fields(Block))


@dataclass(frozen=True)
class Wiring:
    """A network's neural graph. A block that reaches outside its tensor or the neurons is a BadWiring whose `field` names it."""

    parameters: tuple[Parameter, ...]  # every tensor of the flat parameter vector, in its order
    neurons: int  # number of neurons N
    blocks: tuple[Block, ...]  # the edges; a weight is in at most one block, and one in none keeps its last value in a forecast

    def __post_init__(self) -> None:
        _check_parameters(self.parameters)
        if not 1 <= self.neurons <= MAX_NEURONS:
            raise BadWiring(f"neurons must be 1..{MAX_NEURONS}, not {self.neurons}", field="neurons")
        if len(self.blocks) > MAX_BLOCKS:
            raise BadWiring(f"a wiring has at most {MAX_BLOCKS} blocks, not {len(self.blocks)}", field="blocks")
        held = [0] * len(self.parameters)
        for index, block in enumerate(self.blocks):
            _check_block(self, index, block)
            if block.parameter != STRUCTURE:
                held[block.parameter] += block.size
        for parameter, count in zip(self.parameters, held, strict=True):
            if count > parameter.size:
                detail = f"blocks hold {count} weights of {parameter.name!r}, which has only {parameter.size}"
                raise BadWiring(detail, field="blocks")

    @cached_property
    def size(self) -> int:
        """Length n of the flat parameter vector."""
        return sum(parameter.size for parameter in self.parameters)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each parameter starts in the flat vector."""
        return tuple(accumulate((parameter.size for parameter in self.parameters), initial=0))[:-1]

    @cached_property
    def edges(self) -> int:
        """Number of edges, self loops included."""
        return self.neurons + sum(block.edges for block in self.blocks)

    @cached_property
    def slots(self) -> int:
        """The most weights any edge carries, 1..9."""
        return max((block.slots for block in self.blocks), default=1)

    @cached_property
    def words(self) -> range:
        """The neurons of the first word embedding's rows, which several blocks may share, word by word; or none."""
        rows = [block for block in self.blocks if block.edge_type == EdgeType.WORD_EMBEDDING]
        first = [block for block in rows if block.parameter == rows[0].parameter]
        return range(min((b.source for b in first), default=0), max((b.source + b.sources for b in first), default=0))

    @cached_property
    def hash(self) -> str:
        """sha256 of the canonical JSON: the same on every machine and in every process."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values; blocks are rows in the order of `Block`'s fields."""
        return {
            "parameters": [[parameter.name, list(parameter.shape)] for parameter in self.parameters],
            "neurons": self.neurons,
            "blocks": [[int(getattr(block, name)) for name in _FIELDS] for block in self.blocks],
        }

    def to_json(self) -> bytes:
        """The canonical encoding: compact UTF-8 JSON, keys in the order of `to_dict`."""
        encode, whole = partial(json.dumps, separators=(",", ":"), ensure_ascii=False), self.to_dict()
        rows, frame = whole["blocks"], encode({**whole, "blocks": []})
        # a few rows at a time: other threads get their turn in between
        pieces = (encode(rows[start : start + 1000])[1:-1] for start in range(0, len(rows), 1000))
        return (frame.removesuffix("]}") + ",".join(pieces) + "]}").encode("utf-8", "surrogatepass")

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read `to_dict`'s form, trusting nothing; raise BadWiring with the field to blame."""
        if not isinstance(data, dict) or set(data) != {"parameters", "neurons", "blocks"}:
            raise BadWiring("a wiring is an object of exactly parameters, neurons and blocks", field="wiring")
        if not _is_int(data["neurons"]):
            raise BadWiring("neurons must be an integer", field="neurons")
        for name in ("parameters", "blocks"):
            if not isinstance(data[name], list):
                raise BadWiring(f"{name} must be a list", field=name)
        parameters = tuple(_read_parameter(index, row) for index, row in enumerate(data["parameters"]))
        blocks = tuple(_read_block(index, row) for index, row in enumerate(data["blocks"]))
        return cls(parameters, data["neurons"], blocks)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62


def _read_parameter(index: int, row: Any) -> Parameter:
    field = f"parameters[{index}]"
    if not isinstance(row, list) or len(row) != 2 or not isinstance(row[0], str) or not isinstance(row[1], list):
        raise BadWiring(f"{field} must be [name, shape]", field=field)
    if len(row[1]) > 8 or not all(_is_int(size) for size in row[1]):
        raise BadWiring(f"{field}: a shape is a list of at most 8 integers", field=field)
    return Parameter(row[0], tuple(row[1]))


def _read_block(index: int, row: Any) -> Block:
    field = f"blocks[{index}]"
    if not isinstance(row, list) or len(row) != len(_FIELDS) or not all(_is_int(value) for value in row):
        raise BadWiring(f"{field} must be {len(_FIELDS)} integers: {', '.join(_FIELDS)}", field=field)
    values = dict(zip(_FIELDS, row, strict=True))
    if values["diagonal"] not in (0, 1):
        raise BadWiring(f"{field}: diagonal must be 0 or 1", field=f"{field}.diagonal")
    return Block(**{**values, "diagonal": bool(values["diagonal"])})


def _check_parameters(parameters: Sequence[Parameter]) -> None:
    if not parameters:
        raise BadWiring("a wiring needs at least one parameter", field="parameters")
    names: set[str] = set()
    for index, parameter in enumerate(parameters):
        if len(parameter.name) > MAX_NAME:
            detail = f"parameters[{index}]: a name has at most {MAX_NAME} characters, not {len(parameter.name)}; shorten it"
            raise BadWiring(detail, field=f"parameters[{index}]")
        if parameter.name in names:
            raise BadWiring(f"two parameters are named {parameter.name!r}", field=f"parameters[{index}]")
        if any(size < 0 for size in parameter.shape) or parameter.size >= 2**48:
            raise BadWiring(f"{parameter.name!r} has the shape {parameter.shape}", field=f"parameters[{index}]")
        names.add(parameter.name)


def _check_block(wiring: Wiring, index: int, block: Block) -> None:
    def wrong(name: str, why: str) -> BadWiring:
        return BadWiring(f"blocks[{index}].{name} = {getattr(block, name)}: {why}", field=f"blocks[{index}].{name}")

    if block.edge_type not in _BLOCK_TYPES:
        raise wrong("edge_type", f"must be one of {sorted(_BLOCK_TYPES)}")
    for start, count in (("source", "sources"), ("target", "targets")):
        if getattr(block, start) < 0:
            raise wrong(start, "must not be negative")
        if getattr(block, count) < 1:
            raise wrong(count, "must be at least 1")
        if getattr(block, start) + getattr(block, count) > wiring.neurons:
            raise wrong(count, f"the range ends beyond the {wiring.neurons} neurons")
    if block.diagonal and block.sources != block.targets:
        raise wrong("targets", f"a diagonal needs as many targets as sources, {block.sources}")
    _check_weights(wiring, block, wrong)


def _check_weights(wiring: Wiring, block: Block, wrong: Callable[[str, str], BadWiring]) -> None:
    if not 1 <= block.slots <= MAX_SLOTS:
        raise wrong("slots", f"must be 1..{MAX_SLOTS}; split larger kernels over parallel blocks")
    for name in ("offset", "source_stride", "target_stride", "slot_stride"):
        if getattr(block, name) < 0:
            raise wrong(name, "must not be negative")
    structural = block.edge_type >= EdgeType.RESIDUAL
    if structural != (block.parameter == STRUCTURE):
        raise wrong("parameter", "types below 10 name a parameter, structure (10 and up) has -1")
    if structural:
        if (block.offset, block.source_stride, block.target_stride, block.slots, block.slot_stride) != (0, 0, 0, 1, 0):
            raise wrong("offset", "structure holds no weights: offset and strides must be 0, slots 1")
    elif not 0 <= block.parameter < len(wiring.parameters):
        raise wrong("parameter", f"there are {len(wiring.parameters)} parameters")
    elif block.last >= wiring.parameters[block.parameter].size:
        size = wiring.parameters[block.parameter].size
        raise wrong("offset", f"the block reads position {block.last} of a tensor of {size}")
