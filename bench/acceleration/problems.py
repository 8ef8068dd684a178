"""The benchmark's problems: networks and data that no forecaster of ours was fitted to, and FM-16, whose training data was."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer_worker.tasks.task import batch_indices, load_task

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """What is trained and how it is judged.

    Args:
        build: the network, from torch's global generator.
        batch: the batch of a step, for a seed.
        loss: mean loss of outputs.
        validation: batches on which every decision is taken.
        test: batches on which results are reported.
        rates: learning rates to choose from.
        steps: of a run.
        weight_decay: of AdamW.
        ema: decay of the averaged weights.
        autocast: whether products are computed in bfloat16, weights and optimizer staying in float32. Half the time on a CPU with
            AMX, where pictures lie channels last.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[int, int], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    validation: tuple[Batch, ...]
    test: tuple[Batch, ...]
    rates: tuple[float, ...]
    steps: int = 10_000
    weight_decay: float = 0.0
    ema: float = 0.998
    autocast: bool = False

    def step(self, model: nn.Module, batch: Batch) -> None:
        """Loss and gradients of a batch."""
        self._loss(model, *batch).backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def judge(self, model: nn.Module, batches: tuple[Batch, ...]) -> tuple[float, float]:
        """Mean loss over batches of equal size, and the share of right answers (0 where answers are values)."""
        training = model.training
        model.eval()
        found = [(self._outputs(model, inputs), targets) for inputs, targets in batches]
        model.train(training)
        losses = [float(self.loss(given, wanted)) for given, wanted in found]
        right = [
            0.0 if wanted.is_floating_point() else float((given.argmax(-1) == wanted).float().mean()) for given, wanted in found
        ]
        return sum(losses) / len(losses), sum(right) / len(right)

    def _loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(self._outputs(model, inputs), targets)

    def _outputs(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """A network's outputs; Hugging Face wraps them."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            found: Any = model(inputs)
        return (found if isinstance(found, Tensor) else found.logits).float()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


def squared(values: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(values[..., 0], targets)


def load_problem(name: str) -> Problem:
    """The problem `name`, its data read.

    Raises:
        KeyError: no such problem.
        DataMissing: no source has its data.
    """
    return PROBLEMS[name]()


def _fashion(name: str, rates: tuple[float, ...], *, build: Callable[[], nn.Module] | None = None, **settings: Any) -> Problem:
    task = load_task("fm-16" if build else name)
    sets = [task.train, task.validation, task.test]
    parts = [(split.inputs, split.targets) for split in sets]
    return _examples(name, build or task.build, *parts, loss=cross_entropy, rates=rates, batch_size=128, **settings)


def _normalised_convolutions() -> nn.Module:
    """FM-16 with batch normalisation."""
    layers: list[nn.Module] = []
    for channels, width, stride in ((1, 16, 2), (16, 32, 1), (32, 32, 1)):
        convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=0 if stride > 1 else 1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def _colour() -> Problem:
    """Fashion-MNIST in colour, for a small residual network: the difference between a picture and a piece of a photograph, as in
    MNIST-M (Ganin et al. 2016).
    """
    from benchmark_data import photographs

    task, sights = load_task("fm-16"), [torch.from_numpy(values).permute(2, 0, 1) for values in photographs()]
    generator = torch.Generator().manual_seed(0)
    parts = []
    for split in (task.train, task.validation, task.test):
        pictures = (split.inputs - split.inputs.amin()) / (split.inputs.amax() - split.inputs.amin())
        parts.append((2 * (pictures - _pieces(sights, len(pictures), generator)).abs() - 1, split.targets))
    build, rates = partial(ResidualNetwork, (16, 32)), (5e-3, 1e-2, 2e-2)
    return _examples("colour", build, *parts, loss=cross_entropy, rates=rates, batch_size=128, steps=6000, autocast=True)


def _pieces(photographs: list[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """(count, 3, 28, 28) from anywhere in them."""
    found = torch.empty(count, 3, 28, 28)
    for index, draw in enumerate(torch.rand(count, 3, generator=generator).tolist()):
        photograph = photographs[int(draw[0] * len(photographs))]
        top, left = (int(share * (size - 28)) for share, size in zip(draw[1:], photograph.shape[1:], strict=True))
        found[index] = photograph[:, top : top + 28, left : left + 28]
    return found


class ResidualBlock(nn.Module):
    """Two convolutions with batch normalisation, and the inputs added to them."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        stride = 1 if inputs == width else 2
        self.first, self.second = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        self.short = nn.Conv2d(inputs, width, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        inner = functional.relu(self.norms[0](self.first(inputs)))
        found: Tensor = functional.relu(self.norms[1](self.second(inner)) + self.short(inputs))
        return found


class ResidualNetwork(nn.Sequential):
    """Of colour pictures (batch, 3, 28, 28), ten classes.

    Args:
        widths: of the blocks; all but the first halve the picture.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        stem = [nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
        blocks = [ResidualBlock(before, width) for before, width in pairwise((widths[0], *widths))]
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def _animals() -> Problem:
    from benchmark_data import animals

    shapes, classes = animals()
    images = torch.from_numpy(shapes.astype(np.float32) / 255 - 0.5).mul(2).unsqueeze(1)
    labels = torch.from_numpy(classes.astype(np.int64))
    order = torch.from_numpy(np.random.Generator(np.random.PCG64(0)).permutation(len(labels)))
    parts = [(images[index], labels[index]) for index in order.split([len(order) - 2500, 1000, 1500])]
    return _examples("animals", _four_convolutions, *parts, loss=cross_entropy, rates=(1e-3, 3e-3, 6e-3), batch_size=64, steps=6000)


def _four_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def _diamonds() -> Problem:
    from trainer_worker.metatrain.datasets import diamonds

    features, price = map(torch.from_numpy, diamonds())
    parts = list(zip(features.split([45_940, 4000, 4000]), price.split([45_940, 4000, 4000]), strict=True))
    build = partial(_mlp, (9, 64, 64, 1))
    return _examples("diamonds", build, *parts, loss=squared, rates=(1.5e-3, 3e-3, 6e-3), batch_size=128)


def _mlp(widths: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, width in pairwise(widths):
        layers += [nn.Linear(inputs, width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _examples(
    name: str,
    build: Callable[[], nn.Module],
    *parts: Batch,
    loss: Callable[[Tensor, Tensor], Tensor],
    rates: tuple[float, ...],
    batch_size: int,
    steps: int = 10_000,
    autocast: bool = False,
) -> Problem:
    train, validation, test = parts

    def batch(seed: int, step: int) -> Batch:
        index = batch_indices(len(train[1]), batch_size=batch_size, seed=seed, step=step)
        return train[0][index], train[1][index]

    def cut(part: Batch) -> tuple[Batch, ...]:
        return tuple(zip(part[0].split(500), part[1].split(500), strict=True))

    if autocast:
        train, validation, test = ((_channels_last(inputs), targets) for inputs, targets in parts)
    return Problem(
        name,
        (lambda: build().to(memory_format=torch.channels_last)) if autocast else build,
        batch,
        loss,
        cut(validation),
        cut(test),
        rates,
        steps,
        autocast=autocast,
    )


def _channels_last(pictures: Tensor) -> Tensor:
    return pictures.contiguous(memory_format=torch.channels_last)


def _bible() -> Problem:
    from trainer_worker.metatrain.datasets import king_james

    letters = np.frombuffer(king_james().encode("ascii", "replace"), dtype=np.uint8)
    known, tokens = np.unique(letters, return_inverse=True)
    return _text("bible", tokens, len(known), width=64, layers=3, context=64, steps=6000)


def _wikipedia() -> Problem:
    from benchmark_data import wikipedia
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    content = wikipedia()
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel()
    tokenizer.train_from_iterator([content[: 9 * len(content) // 10]], BpeTrainer(vocab_size=1000, show_progress=False))
    tokens = np.array(tokenizer.encode(content).ids)
    return _text("wikipedia", tokens, tokenizer.get_vocab_size(), width=96, layers=4, context=64, steps=4000)


def _text(
    name: str, tokens: np.ndarray[Any, Any], vocabulary: int, *, width: int, layers: int, context: int, steps: int
) -> Problem:
    content = torch.from_numpy(tokens.astype(np.int64))
    train, validation, test = content.split([len(content) - 2 * (len(content) // 20)] + [len(content) // 20] * 2)

    def batch(seed: int, step: int) -> Batch:
        rng = np.random.Generator(np.random.PCG64([seed, step]))
        starts = torch.from_numpy(rng.integers(len(train) - context - 1, size=(16, 1)))
        pieces = train[starts + torch.arange(context + 1)]
        return pieces[:, :-1], pieces[:, 1:]

    def cut(part: Tensor) -> tuple[Batch, ...]:
        pieces = part[: 256 * (context + 1)].view(-1, 64, context + 1)
        return tuple((piece[:, :-1], piece[:, 1:]) for piece in pieces)

    build = partial(_gpt2, vocabulary=vocabulary, width=width, layers=layers, context=context)
    sets = (cross_entropy, cut(validation), cut(test))
    return Problem(name, build, batch, *sets, (1e-3, 2e-3, 4e-3), steps=steps, weight_decay=1e-2, ema=0.995)


def _gpt2(*, vocabulary: int, width: int, layers: int, context: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"vocab_size": vocabulary, "n_positions": context, "n_embd": width, "n_layer": layers, "n_head": 4}
    off: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **off, bos_token_id=None, eos_token_id=None, use_cache=False))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "fm-16": partial(_fashion, "fm-16", (3e-3, 6e-3, 1e-2), autocast=True),
    "fm-32": partial(_fashion, "fm-32", (3e-3, 6e-3, 1e-2), steps=6000, autocast=True),
    "fm-bn": partial(_fashion, "fm-bn", (1.2e-2, 2.4e-2, 4.8e-2), build=_normalised_convolutions, steps=6000, autocast=True),
    "colour": _colour,
    "animals": _animals,
    "bible": _bible,
    "wikipedia": _wikipedia,
    "diamonds": _diamonds,
}
