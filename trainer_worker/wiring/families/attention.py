"""One attention layer as it is read: query, key, value and output, in that order."""

from protos.wiring import EdgeType, Parameter
from trainer_worker.wiring.canvas import Canvas, Neurons
from trainer_worker.wiring.families.roles import Layout, Matrix


class Attention:
    """Draws one attention layer.

    Query and key share neurons, the key's edges run backwards, and a head neuron points to the query and value neurons of its head.
    Where several query heads share a key-value head, keys and values have neurons of their own, tied to the query neurons and
    the results of each of those heads; or it is done the published code's way (`Layout.exact`).

    Args:
        canvas: to draw on.
        layout: of the model.
        inputs: neurons the layer starts from.
        draw_heads: False draws three plain layers.
    """

    def __init__(self, canvas: Canvas, layout: Layout, inputs: Neurons, *, draw_heads: bool) -> None:
        self.inputs = inputs
        self._canvas = canvas
        self._layout = layout
        self._draw_heads = draw_heads
        self._groups = layout.heads // layout.key_value_heads
        self._apart = draw_heads and not layout.exact and self._groups > 1

    def query(self, matrix: Matrix) -> None:
        self._query = self._canvas.neurons(matrix.outputs)
        matrix.draw(self._canvas, self.inputs, self._query, EdgeType.QUERY)
        if self._draw_heads:
            self._heads = self._canvas.neurons(self._layout.heads)
            self._join(self._query, self._layout.heads)

    def key(self, matrix: Matrix) -> None:
        if self._draw_heads and not self._apart:
            self._key = self._query.part(0, matrix.outputs)
            matrix.draw_backwards(self._canvas, self._key, self.inputs, EdgeType.KEY)
            return
        self._key = self._canvas.neurons(matrix.outputs)
        matrix.draw(self._canvas, self.inputs, self._key, EdgeType.KEY)
        if self._apart:
            self._share(self._key, self._query)

    def value(self, matrix: Matrix) -> None:
        self._value = self._result = self._canvas.neurons(matrix.outputs)
        matrix.draw(self._canvas, self.inputs, self._value, EdgeType.VALUE)
        if self._apart:
            self._result = self._canvas.neurons(matrix.outputs * self._groups)
            self._share(self._value, self._result)
            self._join(self._result, self._layout.heads)
        elif self._draw_heads:
            self._join(self._value, self._layout.key_value_heads)

    def output(self, matrix: Matrix) -> Neurons:
        """The output layer; with fewer values than it has inputs it starts from the last query neurons too."""
        targets = self._canvas.neurons(matrix.outputs)
        spare = matrix.inputs - self._result.count
        if spare > 0:
            last = self._query.part(self._query.count - spare, spare)
            matrix.part(0, spare).draw(self._canvas, last, targets, EdgeType.LINEAR)
        matrix.part(spare, self._result.count).draw(self._canvas, self._result, targets, EdgeType.LINEAR)
        self._canvas.residual(self.inputs, targets)
        return targets

    def query_bias(self, name: str, offset: int = 0) -> None:
        self._canvas.vector(name, self._query, EdgeType.OTHER, offset=offset)

    def key_bias(self, name: str, size: int, offset: int = 0) -> None:
        """In the published graphs the bias runs backwards with the key: it attaches to the last of the layer's inputs."""
        backwards = self._layout.exact and self._draw_heads and size <= self.inputs.count
        targets = self.inputs.part(self.inputs.count - size, size) if backwards else self._key
        self._canvas.vector(name, targets, EdgeType.OTHER, offset=offset)

    def value_bias(self, name: str, offset: int = 0) -> None:
        self._canvas.vector(name, self._value, EdgeType.OTHER, offset=offset)

    def query_gain(self, parameter: Parameter) -> None:
        """Qwen's query norm, shared by the heads, joins the first head's query neurons to the second's."""
        self._gain(parameter, self._query)

    def key_gain(self, parameter: Parameter) -> None:
        """Qwen's key norm joins the layer's first inputs to the next ones, since key edges run backwards."""
        self._gain(parameter, self.inputs)

    def _gain(self, parameter: Parameter, neurons: Neurons) -> None:
        width = parameter.size
        if neurons.count >= 2 * width:
            ends = neurons.part(0, width), neurons.part(width, width)
            self._canvas.weights(parameter.name, *ends, EdgeType.NORM, strides=(1, 0), diagonal=True)
        else:
            self._canvas.vector(parameter.name, self._canvas.neurons(width), EdgeType.NORM)

    def _join(self, members: Neurons, heads: int) -> None:
        width = members.count // heads
        for head in range(heads):
            self._canvas.head(self._heads.part(head, 1), members.part(head * width, width))

    def _share(self, shared: Neurons, members: Neurons) -> None:
        """Tie each key-value head's neurons to those of the heads that share it."""
        width = members.count // self._layout.heads
        for head in range(self._layout.heads):
            self._canvas.residual(shared.part(head // self._groups * width, width), members.part(head * width, width))
