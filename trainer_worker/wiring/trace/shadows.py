"""What the tracer knows about a tensor: neurons flowing through it, or weights held in it."""

from dataclasses import dataclass, field, replace

from torch import Tensor

from trainer_worker.wiring.trace.labels import varying


@dataclass(eq=False)
class Pairing:
    """Two activations contracted with each other: attention scores, if a softmax and values follow."""

    query: Tensor  # (batch, width) labels
    key: Tensor  # (batch, width)
    value: Tensor | None = None  # (batch, width of the values)
    result: Tensor | None = None  # (batch, width of the values): the values after attention
    normalised: bool = False


@dataclass(frozen=True)
class Flow:
    """An activation.

    Args:
        identities: see `labels`.
        plain: straight from a layer: only reshaped, scaled and shifted since.
        pairing: the attention scores it holds.
        learnt: it is weights used as an activation (class tokens, prompts).
    """

    identities: tuple[Tensor, ...] = ()
    plain: bool = False
    pairing: Pairing | None = None
    learnt: bool = False

    def along(self, dim: int, size: int) -> Tensor | None:
        """The identity that depends on the dimension; one neuron (size 1) is any identity of one label."""
        for labels in self.identities:
            if labels.shape[dim] > 1 or (size == 1 and labels.numel() == 1):
                return labels
        return None

    def without(self, dim: int) -> tuple[Tensor, ...]:
        """The identities that do not depend on the dimension."""
        return tuple(labels for labels in self.identities if dim not in varying(labels))


@dataclass(frozen=True)
class Held:
    """Weights of one parameter, seen through a view of it.

    Args:
        parameter: its index.
        view: on the meta device; offset, sizes and strides say where in the flattened parameter each element lies.
        riders: other parameters multiplied into it or added to it, expanded to its shape (the gains of weight normalisation).
    """

    parameter: int
    view: Tensor
    riders: tuple["Held", ...] = field(default=())

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.view.shape)

    def seen(self, view: Tensor, riders: tuple["Held", ...]) -> "Held":
        return replace(self, view=view, riders=riders)


Shadow = Flow | Held | None
