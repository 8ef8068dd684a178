"""Characters of the King James Bible, predicted by a small GPT."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from trainer_worker.tasks.data import KING_JAMES, read
from trainer_worker.tasks.gpt import GPT
from trainer_worker.tasks.task import Task

CONTEXT = 64
HELD_OUT = 20
"""The last 1/20 of the text is for testing, the 1/20 before it for validation."""
JUDGED = 1000
"""Windows of each that are judged, evenly spread: 64,000 characters."""


@dataclass(frozen=True, slots=True)
class WindowSplit:
    """Windows of a text; the targets are the characters that follow."""

    tokens: Tensor  # (length,) int64
    context: int  # characters a window
    stride: int  # between the starts of two windows
    count: int  # of windows

    def __len__(self) -> int:
        return self.count

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Split.take`; inputs and targets are (batch, context)."""
        starts = indices.to(self.tokens.device) * self.stride
        windows = self.tokens[starts[:, None] + torch.arange(self.context + 1, device=self.tokens.device)]
        return windows[:, :-1], windows[:, 1:]

    def first(self, count: int) -> Self:
        """See `Split.first`."""
        return replace(self, count=min(count, self.count))

    def to(self, device: torch.device) -> Self:
        """See `Split.to`."""
        return replace(self, tokens=self.tokens.to(device))


def king_james(path: str | Path | None = None) -> str:
    """The text. It lies in a Python module, of which the one long string is taken and nothing is run; `path` as in `data.read`.

    Raises:
        DataMissing: no source has it.
    """
    (content,) = read(KING_JAMES, path=path).contents.values()
    return content.decode("utf-8").split('"""', maxsplit=2)[1].strip() + "\n"


def bible_task(*, layers: int, width: int, heads: int, data: Path | None = None) -> Task:
    """A character language model of `layers` layers, `width` wide.

    Raises:
        DataMissing: no source has the Bible.
    """
    text = king_james(data)
    alphabet = {character: token for token, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([alphabet[character] for character in text])
    held_out = len(tokens) // HELD_OUT
    train, validation, test = tokens[: -2 * held_out], tokens[-2 * held_out : -held_out], tokens[-held_out:]
    return Task(
        build=partial(GPT, vocabulary=len(alphabet), context=CONTEXT, layers=layers, width=width, heads=heads),
        train=WindowSplit(train, CONTEXT, stride=1, count=len(train) - CONTEXT),
        validation=_spread(validation),
        test=_spread(test),
    )


def _spread(tokens: Tensor) -> WindowSplit:
    return WindowSplit(tokens, CONTEXT, stride=(len(tokens) - CONTEXT - 1) // JUDGED, count=JUDGED)
