"""Reading a transformer's parameters in their order, each by its role: how the published graphs are laid out.

Every layer's outputs are new neurons; vectors attach to the neurons of the layer before them; a residual connection joins the
neurons a block starts from to those it ends in.
"""

import math
from collections.abc import Callable

from protos.wiring import EdgeType, Parameter, Wiring
from trainer_worker.wiring.canvas import Canvas, Neurons
from trainer_worker.wiring.families.attention import Attention
from trainer_worker.wiring.families.roles import Layout, Matrix, Role


class Reader:
    """Reads the parameters of one model onto a canvas.

    Args:
        canvas: empty, over the model's parameters.
        layout: head counts and storage order.
        draw_heads: False leaves out what ties the neurons of a head: the naive graph of the ablation.
    """

    def __init__(self, canvas: Canvas, layout: Layout, *, draw_heads: bool = True) -> None:
        self._canvas = canvas
        self._layout = layout
        self._draw_heads = draw_heads
        self._current: Neurons | None = None
        self._words: Neurons | None = None
        self._attention: Attention | None = None
        self._skips: list[Neurons] = []
        self._before: Neurons | None = None

    def read(self, roles: dict[str, Role]) -> Wiring:
        """Draw every parameter by its role; scalars are in no block."""
        for parameter in self._canvas.parameters:
            if parameter.shape:
                _READ[roles[parameter.name]](self, parameter)
        return self._canvas.wiring()

    # Embeddings

    def word(self, parameter: Parameter) -> None:
        rows = self._embed(parameter, EdgeType.WORD_EMBEDDING)
        self._words = self._words or rows

    def position(self, parameter: Parameter) -> None:
        self._embed(parameter, EdgeType.POSITION_EMBEDDING)

    def token_type(self, parameter: Parameter) -> None:
        self._embed(parameter, EdgeType.OTHER)

    def patch(self, parameter: Parameter) -> None:
        """A patch convolution joins the neurons of the class token."""
        outputs, channels = parameter.shape[:2]
        slots = math.prod(parameter.shape[2:])
        sources = self._canvas.neurons(channels)
        self._current = self._current or self._canvas.neurons(outputs)
        strides = (slots, channels * slots)
        self._canvas.weights(parameter.name, sources, self._current, EdgeType.CONVOLUTION, strides=strides, slots=slots)

    def _embed(self, parameter: Parameter, kind: EdgeType) -> Neurons:
        width = parameter.shape[-1]
        rows = self._canvas.neurons(parameter.size // width)
        self._current = self._current or self._canvas.neurons(width)
        draw = self._scramble if self._layout.scrambled else self._draw_embedding
        draw(parameter, rows, self._current, kind)
        return rows

    def _draw_embedding(self, parameter: Parameter, rows: Neurons, targets: Neurons, kind: EdgeType) -> None:
        self._canvas.weights(parameter.name, rows, targets, kind, strides=(targets.count, 1))

    def _scramble(self, parameter: Parameter, rows: Neurons, targets: Neurons, kind: EdgeType) -> None:
        """Lay the columns of an embedding, one after the other, along edges that run row by row.

        The published code turns the tensor but not the edges it goes to, so that the weight of word v and feature c sits on edge
        number c * words + v. Checkpoints were trained with it and the fixtures hold it, so it is drawn just so: a few rectangles
        for every column.
        """
        words, width = rows.count, targets.count
        for column in range(width):
            edge, end = column * words, (column + 1) * words
            while edge < end:
                row, first = divmod(edge, width)
                whole = 0 if first else (end - edge) // width
                height, breadth = (whole, width) if whole else (1, min(width - first, end - edge))
                offset = (edge - column * words) * width + column
                ends = rows.part(row, height), targets.part(first, breadth)
                self._canvas.weights(parameter.name, *ends, kind, strides=(width * width, width), offset=offset)
                edge += height * breadth

    # Vectors

    def gain(self, parameter: Parameter) -> None:
        self._canvas.vector(parameter.name, self._last(), EdgeType.NORM)

    def bias(self, parameter: Parameter) -> None:
        self._canvas.vector(parameter.name, self._last(), EdgeType.OTHER)

    def before_gain(self, parameter: Parameter) -> None:
        """A norm listed after the layer it stands before (ViT) still attaches to that layer's inputs."""
        self._canvas.vector(parameter.name, self._before or self._last(), EdgeType.NORM)

    def before_bias(self, parameter: Parameter) -> None:
        self._canvas.vector(parameter.name, self._before or self._last(), EdgeType.OTHER)

    def word_bias(self, parameter: Parameter) -> None:
        """BERT's output bias points from the vocabulary to one neuron, the other way round than any bias."""
        assert self._words is not None
        self._canvas.weights(parameter.name, self._words, self._canvas.neurons(1), EdgeType.OTHER, strides=(1, 0))

    # Attention

    def query(self, parameter: Parameter) -> None:
        self._start_attention().query(self._matrix(parameter))

    def key(self, parameter: Parameter) -> None:
        self._layer.key(self._matrix(parameter))

    def value(self, parameter: Parameter) -> None:
        self._layer.value(self._matrix(parameter))

    def fused(self, parameter: Parameter) -> None:
        """One tensor of query, key and value, a third each."""
        query, key, value = self._thirds(parameter)
        layer = self._start_attention()
        layer.query(query)
        layer.key(key)
        layer.value(value)

    def query_bias(self, parameter: Parameter) -> None:
        self._layer.query_bias(parameter.name)

    def key_bias(self, parameter: Parameter) -> None:
        self._layer.key_bias(parameter.name, parameter.size)

    def value_bias(self, parameter: Parameter) -> None:
        self._layer.value_bias(parameter.name)

    def fused_bias(self, parameter: Parameter) -> None:
        size = parameter.size // 3
        self._layer.query_bias(parameter.name)
        self._layer.key_bias(parameter.name, size, size)
        self._layer.value_bias(parameter.name, 2 * size)

    def query_gain(self, parameter: Parameter) -> None:
        self._layer.query_gain(parameter)

    def key_gain(self, parameter: Parameter) -> None:
        self._layer.key_gain(parameter)

    def attention_out(self, parameter: Parameter) -> None:
        self._current = self._layer.output(self._matrix(parameter))

    def _start_attention(self) -> Attention:
        self._before = self._last()
        self._attention = Attention(self._canvas, self._layout, self._before, draw_heads=self._draw_heads)
        return self._attention

    # Layers

    def linear(self, parameter: Parameter) -> None:
        matrix = self._matrix(parameter)
        sources = self._last()
        self._before = sources
        self._current = self._canvas.neurons(matrix.outputs)
        matrix.draw(self._canvas, sources, self._current, EdgeType.LINEAR)

    def mlp_in(self, parameter: Parameter) -> None:
        self._skips = [self._last()]
        self.linear(parameter)

    def mlp_up(self, parameter: Parameter) -> None:
        """Ends in the gate's neurons and starts from a second copy of the block's inputs, tied to the block's outputs."""
        matrix = self._matrix(parameter)
        copy = self._canvas.neurons(matrix.inputs)
        self._skips.append(copy)
        matrix.draw(self._canvas, copy, self._last(), EdgeType.LINEAR)

    def mlp_out(self, parameter: Parameter) -> None:
        before = self._skips[0]
        self.linear(parameter)
        for skip in self._skips:
            self._canvas.residual(skip, self._last())
        self._skips, self._before = [], before

    def unturned_head(self, parameter: Parameter) -> None:
        """GPT-2's output head is stored (out, in) but read (in, out): its rows start at the stream and run on into its targets."""
        rows, width = parameter.shape
        stream = self._last()
        targets = self._canvas.neurons(width)
        ranges = [stream, targets, self._canvas.neurons(max(0, rows - 2 * width))]
        for index, sources in enumerate(ranges):
            count = min(sources.count, rows - index * width)
            if count > 0:
                part = sources.part(0, count)
                offset = index * width * width
                self._canvas.weights(parameter.name, part, targets, EdgeType.LINEAR, strides=(width, 1), offset=offset)
        self._current = targets

    def _matrix(self, parameter: Parameter) -> Matrix:
        rows, columns = parameter.shape
        if self._layout.turned:
            return Matrix(parameter.name, rows, columns, columns, 1)
        return Matrix(parameter.name, columns, rows, 1, columns)

    def _thirds(self, parameter: Parameter) -> list[Matrix]:
        whole = self._matrix(parameter)
        outputs = whole.outputs // 3
        step = outputs * whole.output_stride
        strides = (whole.input_stride, whole.output_stride)
        return [Matrix(whole.name, whole.inputs, outputs, *strides, index * step) for index in range(3)]

    def _last(self) -> Neurons:
        assert self._current is not None
        return self._current

    @property
    def _layer(self) -> Attention:
        assert self._attention is not None
        return self._attention


_READ: dict[Role, Callable[[Reader, Parameter], None]] = {role: getattr(Reader, role.name.lower()) for role in Role}
