"""What is compared: an arm's name, and how it trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rivals import EmaNesterov, Snoo, Wrapper, ademamix, divide
from torch import nn
from torch.optim import AdamW, Optimizer

Settings = dict[str, float]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "decay": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "wsd": lambda done: min(1.0, (done + 0.0001) / 0.02, (1 - done) / 0.2),
}
"""Of the learning rate, as a share of its highest, after a share of the run."""
WRAPPERS: dict[str, Callable[..., Wrapper]] = {"ema-nesterov": EmaNesterov, "snoo": Snoo}
OPTIMIZERS = ("adam", "ademamix", "muon")
MODES = ("jump", "shadow")


@dataclass(frozen=True)
class Part:
    """A name and its settings, of `ademamix:alpha=5,beta3=0.999`."""

    name: str
    settings: Settings = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> Part:
        name, _, rest = text.partition(":")
        pairs = [pair.split("=") for pair in rest.split(",") if pair]
        return cls(name, {key: float(value) for key, value in pairs})

    def __str__(self) -> str:
        given = ",".join(f"{key}={value:g}" for key, value in sorted(self.settings.items()))
        return f"{Path(self.name).stem}{':' if given else ''}{given}"


@dataclass(frozen=True)
class Arm:
    """An optimizer, perhaps under a schedule or in a wrapper, perhaps with a forecaster.

    Raises:
        ValueError: of the name, an extra is not known, or is one too many.
    """

    base: Part
    extras: tuple[Part, ...] = ()

    @classmethod
    def read(cls, text: str) -> Arm:
        base, *extras = (Part.read(part) for part in text.split("+"))
        arm = cls(base, tuple(sorted(extras, key=str)))
        known = [*SCHEDULES, *WRAPPERS, *OPTIMIZERS, *(MODES if arm.forecaster else ())]
        if unknown := [extra.name for extra in extras if extra.name not in known]:
            raise ValueError(f"{text}: {', '.join(unknown)} is no extra of {base.name}; choose from {', '.join(known)}")
        return arm

    @property
    def label(self) -> str:
        """The arm's name in files and tables."""
        return "+".join(str(part) for part in (self.base, *self.extras))

    @property
    def forecaster(self) -> str | None:
        return None if self.base.name in {*SCHEDULES, *WRAPPERS, *OPTIMIZERS} else self.base.name

    @property
    def schedule(self) -> Callable[[float], float] | None:
        """What the learning rate follows; None if it is constant."""
        return next((SCHEDULES[name] for name in self._names() if name in SCHEDULES), None)

    def optimizers(self, model: nn.Module, *, lr: float, weight_decay: float, steps: int) -> list[Optimizer]:
        """What trains the model, to be stepped in this order."""
        part = self._part(OPTIMIZERS) or Part("adam")
        both: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        if part.name == "ademamix":
            return [ademamix(model.parameters(), **both, steps=steps, **part.settings)]
        if part.name == "muon":
            return muon(model, **both)
        return [AdamW(model.parameters(), **both)]

    def wrapper(self, optimizer: Optimizer) -> Wrapper | None:
        """What acts around the optimizer's steps."""
        part = self._part(tuple(WRAPPERS))
        return WRAPPERS[part.name](optimizer, **part.settings) if part else None

    def nowcast(self, model: nn.Module, optimizers: list[Optimizer], *, steps: int) -> AbstractContextManager[Any]:
        """The context to train in: a `Nowcast`, or nothing without a forecaster."""
        if self.forecaster is None:
            return nullcontext()
        from trainer_worker import Nowcast, Push

        settings = dict(self.base.settings)
        interval = int(settings.pop("interval", 0)) or None
        known = None if settings.pop("endless", 0) else steps
        push = partial(Push, horizon=int(settings.pop("horizon"))) if "horizon" in settings else Push
        mode: Any = next((name for name in self._names() if name in MODES), "glide")
        given: dict[str, Any] = {"interval": interval, "mode": mode, "forecaster": self.forecaster, "push": push(**settings)}
        return Nowcast(model, optimizers, max_steps=known, server="embedded", **given)

    def _names(self) -> list[str]:
        return [part.name for part in (self.base, *self.extras)]

    def _part(self, names: tuple[str, ...]) -> Part | None:
        return next((part for part in (self.base, *self.extras) if part.name in names), None)


def muon(model: nn.Module, *, lr: float, weight_decay: float) -> list[Optimizer]:
    """`torch.optim.Muon` for matrices between hidden layers (Jordan et al. 2024), AdamW for all other parameters.

    One learning rate does for both: Muon's steps are scaled to be as long as Adam's (Liu et al. 2025, arXiv 2502.16982).
    """
    from torch.optim import Muon

    matrices, others = divide(model)
    both: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    return [Muon(matrices, **both, adjust_lr_fn="match_rms_adamw"), AdamW(others, **both)]
