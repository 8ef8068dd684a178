"""The words in which a family of transformers is described."""

from dataclasses import dataclass, replace
from enum import Enum, auto

from protos.wiring import EdgeType
from trainer_worker.wiring.canvas import Canvas, Neurons


class Role(Enum):
    """What a parameter is to a transformer."""

    WORD = auto()
    POSITION = auto()
    TOKEN_TYPE = auto()
    PATCH = auto()
    GAIN = auto()
    BIAS = auto()
    LINEAR = auto()
    QUERY = auto()
    KEY = auto()
    VALUE = auto()
    QUERY_BIAS = auto()
    KEY_BIAS = auto()
    VALUE_BIAS = auto()
    FUSED = auto()
    FUSED_BIAS = auto()
    QUERY_GAIN = auto()
    KEY_GAIN = auto()
    ATTENTION_OUT = auto()
    MLP_IN = auto()
    MLP_UP = auto()
    MLP_OUT = auto()
    BEFORE_GAIN = auto()
    BEFORE_BIAS = auto()
    WORD_BIAS = auto()
    UNTURNED_HEAD = auto()


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model is stored and drawn.

    Args:
        heads, key_value_heads: attention heads of a layer.
        turned: matrices are (in, out) as GPT-2's Conv1D.
        exact: the published code has a graph for this model, which is drawn with its oddities: key biases attach to the layer's
            inputs; keys of shared heads take the first query neurons, and the output starts from the last of query and value.
        scrambled: embeddings are drawn as the published code draws them, see `Reader`.
    """

    heads: int
    key_value_heads: int
    turned: bool = False
    exact: bool = False
    scrambled: bool = False


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix inside a parameter: `inputs` x `outputs`, with the stride of each axis."""

    name: str
    inputs: int
    outputs: int
    input_stride: int
    output_stride: int
    offset: int = 0

    def part(self, first: int, inputs: int) -> "Matrix":
        """Some of the inputs."""
        return replace(self, inputs=inputs, offset=self.offset + first * self.input_stride)

    def draw(self, canvas: Canvas, sources: Neurons, targets: Neurons, kind: EdgeType) -> None:
        """From inputs to outputs."""
        strides = (self.input_stride, self.output_stride)
        canvas.weights(self.name, sources, targets, kind, strides=strides, offset=self.offset)

    def draw_backwards(self, canvas: Canvas, sources: Neurons, targets: Neurons, kind: EdgeType) -> None:
        """From outputs to inputs."""
        strides = (self.output_stride, self.input_stride)
        canvas.weights(self.name, sources, targets, kind, strides=strides, offset=self.offset)
