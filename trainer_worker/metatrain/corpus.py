"""The data that meta-training draws on, read once a process. Some of it is kept for validation and never trained on."""

import sysconfig
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainer_worker.metatrain.datasets import factbook, mnist_5k, tables

TRAINING: Final[dict[str, dict[str, float]]] = {
    "convnet": {"fashion": 0.75, "digits": 0.25},
    "mlp": {"fashion": 0.3, "digits": 0.2, "wine": 0.1, "diabetes": 0.1, "friedman-1": 0.1, "friedman-2": 0.1, "friedman-3": 0.1},
    "gpt": {"factbook": 0.6, "factbook-bpe": 0.4},
}
"""By kind of network, the data whose trajectories a forecaster is fitted to, and how often each is drawn."""

VALIDATION: Final[dict[str, dict[str, float]]] = {
    "convnet": {"mnist": 1.0},
    "mlp": {"breast-cancer": 0.5, "mnist": 0.5},
    "gpt": {"python": 1.0},
}
"""By kind of network, the data whose trajectories only judge a forecaster."""

BPE_TOKENS: Final = 320
FASHION_EXAMPLES: Final = 55_000
"""Of the 60,000 training pictures: the last twelfth is validation data of the tasks FM-16 and FM-32."""

Examples = tuple[Tensor, Tensor]


@cache
def pictures(name: str, *, size: int) -> Examples:
    """Standardised pictures (examples, size, size) and labels (examples,)."""
    images, labels = _raw_pictures(name)
    if images.shape[-1] != size:
        images = functional.adaptive_avg_pool2d(images, size)
    return (images - images.mean()) / images.std(), labels


@cache
def _raw_pictures(name: str) -> Examples:
    if name == "digits":
        features, labels = table("digits")
        return features.view(-1, 8, 8), labels
    if name == "fashion":
        from trainer_worker.tasks.data import fashion_mnist

        kept = fashion_mnist()[0]
        images, classes = kept.images[:FASHION_EXAMPLES], kept.labels[:FASHION_EXAMPLES]
    else:
        images, classes = mnist_5k()
    return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(classes.astype(np.int64))


@cache
def table(name: str) -> Examples:
    """Features (examples, columns) and targets (examples,)."""
    if name.startswith("friedman"):
        return _friedman(int(name[-1]))
    features, targets = tables()[name]
    return torch.from_numpy(features), torch.from_numpy(targets)


def _friedman(which: int, *, examples: int = 20_000) -> Examples:
    """Regression on the synthetic functions of Friedman (1991) and Breiman (1996), with noise and useless columns."""
    generator = torch.Generator().manual_seed(which)
    x = torch.rand(examples, 10, generator=generator)
    a, b, c, d, e = x[:, :5].T
    if which == 1:
        y = 10 * (torch.pi * a * b).sin() + 20 * (c - 0.5) ** 2 + 10 * d + 5 * e
    else:
        b, d = 2 * torch.pi * (20 + 260 * b), 1 + 10 * d
        reactance = b * c - 1 / (b * d)
        y = (10_000 * a**2 + reactance**2).sqrt() if which == 2 else (reactance / (100 * a + 1e-3)).atan()
    y = y + 0.3 * y.std() * torch.randn(examples, generator=generator)
    return (x - 0.5) * 12**0.5, (y - y.mean()) / y.std()


@cache
def text(name: str) -> tuple[Tensor, int]:
    """Tokens (length,) int64 of a text, and the size of its vocabulary."""
    if name == "factbook-bpe":
        return _pairs(_read_text("factbook"))
    letters = np.frombuffer(_read_text(name).encode("ascii", "replace"), dtype=np.uint8)
    known, tokens = np.unique(letters, return_inverse=True)
    return torch.from_numpy(tokens.astype(np.int64)), len(known)


def _read_text(name: str) -> str:
    if name == "factbook":
        return factbook()
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in folder.glob("*.py") if path.is_file())
    return "\n".join(path.read_text("utf-8", "replace") for path in files)


def _pairs(content: str) -> tuple[Tensor, int]:
    """Byte-pair encoding learnt from the text's first part, greedy and small: enough to make a vocabulary with long tails."""
    tokens = np.frombuffer(content.encode("ascii", "replace")[:2_000_000], dtype=np.uint8).astype(np.int64)
    known, tokens = np.unique(tokens, return_inverse=True)
    size = len(known)
    while size < BPE_TOKENS:
        codes = tokens[:-1] * BPE_TOKENS + tokens[1:]
        pair = int(np.bincount(codes).argmax())
        tokens = _merge(tokens, codes == pair, size)
        size += 1
    return torch.from_numpy(tokens), size


def _merge(tokens: np.ndarray, hits: np.ndarray, new: int) -> np.ndarray:
    starts = np.flatnonzero(hits)
    # of overlapping pairs, as in "aaa", every second one counts
    runs = np.cumsum(np.diff(starts, prepend=-2) > 1)
    within = np.arange(len(starts)) - np.searchsorted(runs, runs)
    starts = starts[within % 2 == 0]
    merged = tokens.copy()
    merged[starts] = new
    return np.delete(merged, starts + 1)
