"""Drawing at random what to train: a `Study` is one stack, fixed by a seed and its number."""

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from trainer_worker.metatrain import corpus
from trainer_worker.metatrain.feeds import Feed, PictureFeed, TableFeed, TextFeed, View
from trainer_worker.metatrain.leaps import Leaps
from trainer_worker.metatrain.networks import Design, Kind, Norm
from trainer_worker.metatrain.stack import Lane

MOST_WORK = 2e11
"""Multiply-adds of the forward passes of one study: about half a minute of one core."""

MOST_GPT_WEIGHTS = 25_000
"""In the layers of a language model, its embeddings not counted."""


MLP_OVERHEAD = 1e7
"""Of a step of an MLP, as multiply-adds: its operations are so small that their number counts, not their size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A stack to train.

    Args:
        number: in its collection.
        data: what it trains on.
        validation: whether its trajectories are kept for validation.
        design: the network.
        size: edge of the pictures, 0 for other data.
        views: how each lane sees the pictures.
        lanes: how each lane is trained.
        batch_size, steps, every: of all lanes.
        leaps: jumps that all lanes make.
    """

    number: int
    data: str
    validation: bool
    design: Design
    size: int
    views: tuple[View, ...]
    lanes: tuple[Lane, ...]
    batch_size: int
    steps: int
    every: int
    leaps: Leaps | None = None

    def feed(self) -> Feed:
        """The data, read now."""
        return feed_of(self.design, self.data, size=self.size, views=self.views, lanes=len(self.lanes))

    def header(self, lane: int) -> dict[str, Any]:
        """What the store keeps about a lane's run."""
        about = {name: getattr(self, name) for name in ("data", "validation", "size", "batch_size")}
        view = {"view": asdict(self.views[lane])} if self.views else {}
        leaps = {"leaps": asdict(self.leaps)} if self.leaps else {}
        task = f"{self.design.kind}/{self.data}"
        return {
            "task": task,
            "interval": self.every,
            "design": self.design.to_dict(),
            **about,
            **view,
            **leaps,
            **asdict(self.lanes[lane]),
        }


def feed_of(design: Design, data: str, *, size: int, views: tuple[View, ...], lanes: int) -> Feed:
    """The data that lanes of a design train on. Arguments as of `Study`."""
    if design.kind == "gpt":
        return TextFeed(corpus.text(data)[0], lanes, design.tokens)
    if size:
        return PictureFeed(*corpus.pictures(data, size=size), views, flat=design.kind == "mlp")
    return TableFeed(*corpus.table(data), lanes)


def draw(seed: int, number: int, *, lanes: int, validation_share: float, longest: int = 0, leaping: float = 0.0) -> Study:
    """The study `number` of the collection `seed`: always the same.

    Args:
        seed: of the collection.
        number: in it.
        lanes: at most.
        validation_share: share of studies on data that is never fitted to.
        longest: steps that studies of cheap networks are lengthened to, within `MOST_WORK`; 0 for none.
        leaping: share of studies whose runs jump.
    """
    rng = np.random.Generator(np.random.PCG64([seed, number]))
    kind: Kind = rng.choice(["convnet", "gpt", "mlp"], p=[0.57, 0.25, 0.18])
    validation = bool(rng.random() < validation_share)
    names, weights = zip(*(corpus.VALIDATION if validation else corpus.TRAINING)[kind].items(), strict=True)
    data = str(rng.choice(names, p=np.divide(weights, sum(weights))))
    study = _DRAW[kind](rng, number, data, lanes, validation=validation)
    more = np.random.Generator(np.random.PCG64([seed, number, 1]))  # apart: earlier collections stay what they were
    steps = int(MOST_WORK / (_work(study.design, study.size, study.batch_size) * len(study.lanes))) // 1000 * 1000
    study = replace(study, steps=max(study.steps, min(longest, steps)))
    return replace(study, leaps=_leaps(more)) if more.random() < leaping else study


def _leaps(rng: np.random.Generator) -> Leaps:
    """One to three jumps, each less far than the one before, as in the paper's schedule."""
    horizons = sorted(rng.integers(3, 41, size=rng.integers(1, 4)).tolist(), reverse=True)
    return Leaps(stride=int(rng.choice([1, 2, 3])), horizons=tuple(horizons))


def _convnet(rng: np.random.Generator, number: int, data: str, lanes: int, *, validation: bool) -> Study:
    width = int(rng.choice([4, 8, 12, 16], p=[0.1, 0.5, 0.15, 0.25]))
    size = 8 if data == "digits" else int(rng.choice([14, 20, 28], p=[0.4, 0.35, 0.25] if width < 12 else [0.65, 0.35, 0.0]))
    if rng.random() < 0.4:  # the shape of FM-16 and FM-32
        plain, depth, growths = True, 3, [1.0, 2.0, 2.0]
    else:
        plain, depth = False, int(rng.choice([2, 3, 4], p=[0.2, 0.5, 0.3]))
        growths = [1.0, *sorted(rng.choice([1.0, 1.5, 2.0, 2.0], size=depth - 1))]
    # multiples of four: grouped convolutions of other widths run several times slower
    widths = tuple(4 * round(width * growth / 4) for growth in growths)
    shrunk = plain or size > 14 or bool(rng.random() < 0.8)
    strides = (2,) + (1,) * (depth - 1) if shrunk else (1,) * depth
    pooled = (not shrunk and size > 8, *(not plain and bool(rng.random() < 0.15) for _ in range(depth - 1)))
    norm: Norm = "none" if plain else rng.choice(["none", "batch"], p=[0.65, 0.35])
    classes = int(rng.choice([10, 10, 10, 5, 2]))
    design = Design(
        kind="convnet",
        inputs=1,
        outputs=classes,
        widths=widths,
        strides=strides,
        pooled=pooled,
        norm=norm,
        activation="relu" if plain else str(rng.choice(["relu", "gelu", "silu"], p=[0.6, 0.2, 0.2])),
        gain=float(rng.choice([1.0, 1.5, 0.7], p=[0.7, 0.15, 0.15])),
    )
    batch_size, steps = int(rng.choice([16, 32, 64, 128], p=[0.15, 0.5, 0.2, 0.15])), int(rng.choice([5000, 6000]))
    lanes = _affordable(lanes, _work(design, size, batch_size) * steps)
    return Study(
        number=number,
        data=data,
        validation=validation,
        design=design,
        size=size,
        views=tuple(_view(rng, classes) for _ in range(lanes)),
        lanes=tuple(_lane(rng, 1.5e-3, 1.5e-2) for _ in range(lanes)),
        batch_size=batch_size,
        steps=steps,
        every=50,
    )


def _mlp(rng: np.random.Generator, number: int, data: str, lanes: int, *, validation: bool) -> Study:
    depth = int(rng.integers(1, 5))
    width = int(rng.integers(10, 41))
    size = {"fashion": 10, "mnist": 10, "digits": 8}.get(data, 0)
    classes = {"wine": 3, "breast-cancer": 2}.get(data, 10 if size else 1)
    design = Design(
        kind="mlp",
        inputs=size * size or corpus.table(data)[0].shape[1],
        outputs=classes,
        widths=tuple(max(4, int(width * rng.choice([1.0, 1.0, 0.5]))) for _ in range(depth)),
        norm=rng.choice(["none", "layer"], p=[0.75, 0.25]),
        activation=str(rng.choice(["relu", "gelu", "silu", "tanh"], p=[0.55, 0.15, 0.15, 0.15])),
        gain=float(rng.choice([1.0, 1.5, 0.7], p=[0.7, 0.15, 0.15])),
    )
    return Study(
        number=number,
        data=data,
        validation=validation,
        design=design,
        size=size,
        views=tuple(_view(rng, classes) for _ in range(2 * lanes)) if size else (),
        lanes=tuple(_lane(rng, 3e-4, 1e-2) for _ in range(2 * lanes)),
        batch_size=int(rng.choice([16, 32, 64, 128])),
        steps=6000,
        every=50,
    )


def _gpt(rng: np.random.Generator, number: int, data: str, lanes: int, *, validation: bool) -> Study:
    width = int(rng.choice([16, 24, 32, 48], p=[0.45, 0.3, 0.2, 0.05]))
    heads = int(rng.choice([1, 2, 4], p=[0.2, 0.4, 0.4]))
    # a window costs a fit in proportion to its parameters
    depth = int(rng.integers(1, max(1, min(3, MOST_GPT_WEIGHTS // (12 * width**2))) + 1))
    tokens = int(rng.choice([16, 24, 32]))
    vocabulary = corpus.text(data)[1]
    batch_size, steps = int(rng.choice([8, 12])), int(rng.choice([4000, 5000]))
    design = Design(
        kind="gpt",
        inputs=vocabulary,
        outputs=vocabulary,
        widths=(width,) * depth,
        heads=heads,
        tokens=tokens,
        norm="layer",
        activation="gelu",
        gain=float(rng.choice([1.0, 2.0, 3.0], p=[0.6, 0.2, 0.2])),
    )
    lanes = _affordable(lanes, _work(design, 0, batch_size) * steps)
    return Study(
        number=number,
        data=data,
        validation=validation,
        design=design,
        size=0,
        views=(),
        lanes=tuple(_lane(rng, 4e-4, 6e-3, warmup=100) for _ in range(lanes)),
        batch_size=batch_size,
        steps=steps,
        every=50,
    )


def _affordable(lanes: int, work: float) -> int:
    """How many lanes of `work` multiply-adds each a study may have."""
    return int(np.clip(MOST_WORK / work, 1, lanes))


def _work(design: Design, size: int, batch_size: int) -> float:
    """Multiply-adds of the forward pass of one step, with what else a network spends time on counted as so many."""
    if design.kind == "convnet":
        return _convnet_work(design, size) * batch_size
    if design.kind == "gpt":
        width = design.widths[0]
        return 2 * (12 * len(design.widths) * width**2 + width * design.inputs) * design.tokens * batch_size
    ends = pairwise((design.inputs, *design.widths, design.outputs))
    return batch_size * sum(one * other for one, other in ends) + MLP_OVERHEAD


def _convnet_work(design: Design, size: int) -> float:
    """Multiply-adds of one forward pass of one picture, more for batch normalisation, which is bound by memory."""
    channels, work = design.inputs, 0.0
    for width, stride, pooled in zip(design.widths, design.strides, design.pooled, strict=True):
        size = (size - 1) // stride if stride > 1 else size
        work += 9 * channels * width * size**2 + (600 * width * size**2 if design.norm == "batch" else 0)
        size //= 2 if pooled else 1
        channels = width
    return work


_DRAW = {"convnet": _convnet, "mlp": _mlp, "gpt": _gpt}


def _view(rng: np.random.Generator, classes: int) -> View:
    merged = rng.permutation(np.arange(10) % classes)
    return View(
        turns=int(rng.integers(4)),
        mirrored=bool(rng.random() < 0.5),
        gain=float(rng.choice([1.0, -1.0]) * np.exp(rng.normal(0.0, 0.3))),
        classes=tuple(int(label) for label in merged),
    )


def _lane(rng: np.random.Generator, lowest: float, highest: float, *, warmup: int = 0) -> Lane:
    return Lane(
        lr=float(np.exp(rng.uniform(np.log(lowest), np.log(highest)))),
        weight_decay=float(rng.choice([0.0, 1e-2, 1e-1], p=[0.6, 0.2, 0.2])),
        beta1=0.9,
        beta2=float(rng.choice([0.999, 0.99, 0.95], p=[0.75, 0.15, 0.1])),
        warmup=int(rng.choice([0, warmup])),
        seed=int(rng.integers(2**31)),
    )
