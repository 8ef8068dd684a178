"""Batches for a stack of lanes: every lane sees its own examples, and its own variant of the data."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Feed(Protocol):
    """Draws batches."""

    def take(self, generator: torch.Generator, *, batch_size: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (lanes, batch, ...) each."""


@dataclass(frozen=True, slots=True)
class View:
    """How one lane sees the pictures: turned, mirrored, inverted, scaled, with classes merged.

    Args:
        turns: quarter turns.
        mirrored: left to right.
        gain: factor on the standardised picture; negative inverts it.
        classes: new class of each class.
    """

    turns: int
    mirrored: bool
    gain: float
    classes: tuple[int, ...]

    def apply(self, pictures: Tensor) -> Tensor:
        """(..., height, width), the same shape out for square pictures."""
        pictures = torch.rot90(pictures, self.turns, (-2, -1))
        return self.gain * (pictures.flip(-1) if self.mirrored else pictures)


@dataclass(frozen=True, slots=True)
class PictureFeed:
    """Pictures, one view for each lane.

    Args:
        images: (examples, size, size) float32, standardised.
        labels: (examples,) int64.
        views: one for each lane.
        flat: whether a picture is given as a vector (size * size) or with one channel (1, size, size).
    """

    images: Tensor
    labels: Tensor
    views: tuple[View, ...]
    flat: bool

    def take(self, generator: torch.Generator, *, batch_size: int) -> tuple[Tensor, Tensor]:
        """See `Feed.take`."""
        index = torch.randint(len(self.labels), (len(self.views), batch_size), generator=generator)
        pictures = torch.stack([view.apply(self.images[rows]) for view, rows in zip(self.views, index, strict=True)])
        classes = torch.tensor([view.classes for view in self.views])
        return pictures.flatten(2) if self.flat else pictures.unsqueeze(2), classes.gather(1, self.labels[index])


@dataclass(frozen=True, slots=True)
class TextFeed:
    """Pieces of a text, to predict each next token.

    Args:
        text: (length,) int64 tokens.
        lanes: how many.
        tokens: length of a piece.
    """

    text: Tensor
    lanes: int
    tokens: int

    def take(self, generator: torch.Generator, *, batch_size: int) -> tuple[Tensor, Tensor]:
        """See `Feed.take`."""
        start = torch.randint(len(self.text) - self.tokens, (self.lanes, batch_size, 1), generator=generator)
        pieces = self.text[start + torch.arange(self.tokens + 1)]
        return pieces[..., :-1], pieces[..., 1:]


@dataclass(frozen=True, slots=True)
class TableFeed:
    """Rows of a table.

    Args:
        features: (examples, columns) float32.
        targets: (examples,) int64 classes or float32 values.
        lanes: how many.
    """

    features: Tensor
    targets: Tensor
    lanes: int

    def take(self, generator: torch.Generator, *, batch_size: int) -> tuple[Tensor, Tensor]:
        """See `Feed.take`."""
        index = torch.randint(len(self.targets), (self.lanes, batch_size), generator=generator)
        return self.features[index], self.targets[index]
