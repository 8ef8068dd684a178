"""The forecasters by name, those of other packages among them, and how to get one ready."""

import inspect
import logging
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from nowcast_server.forecasters.base import Forecaster
from nowcast_server.forecasters.learned import LearnedForecaster, Nino, Wnn
from nowcast_server.forecasters.simple import Average, Last, Linear, Spectral
from nowcast_server.nino.checkpoint import CheckpointError, load_checkpoint
from protos.errors import UnknownForecaster

if TYPE_CHECKING:
    from nowcast_server.settings import CheckpointFile

FORECASTERS: Final[dict[str, type[Forecaster]]] = {cls.name: cls for cls in (Last, Linear, Spectral, Average, Wnn, Nino)}
"""Every forecaster, the simplest first, then those that were registered."""

ENTRY_POINTS: Final = "nowcast.forecasters"  # under which installed packages offer theirs: `name = "package.module:Class"`
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SHIPPED: Final = Path(__file__).parent.parent / "checkpoints"  # the package's own: `nino-base.safetensors`, `wnn-base.safetensors`

logger = logging.getLogger(__name__)


def register(name: str, forecaster: type[Forecaster]) -> None:
    """Offer a forecaster of one's own, a class that is called without arguments, under a name by which jobs ask for it, in this
    process. Others, and servers, find one that an installed package names in its entry points `nowcast.forecasters`.

    Raises:
        ValueError: the name cannot be one, or is another forecaster's.
        TypeError: the class is no forecaster, lacks a method, or wants arguments.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a forecaster: 1 to 64 letters, digits, '.', '_' and '-', the first no sign")
    if not (isinstance(forecaster, type) and issubclass(forecaster, Forecaster)):
        raise TypeError(f"{forecaster!r} is not a subclass of nowcast_server.forecasters.Forecaster")
    if missing := sorted(forecaster.__abstractmethods__):
        raise TypeError(f"{forecaster.__name__} lacks {', '.join(missing)}")
    inspect.signature(forecaster).bind(*([None] if issubclass(forecaster, LearnedForecaster) else []))
    if FORECASTERS.get(name, forecaster) is not forecaster:
        raise ValueError(f"{name!r} is the name of {FORECASTERS[name].__qualname__} already; choose another")
    FORECASTERS[name] = forecaster


@cache
def discover() -> None:
    """Register the forecasters of installed packages, once; one that cannot be used is logged and left out."""
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            register(entry.name, entry.load())
        except Exception as error:  # noqa: BLE001  (importing it runs another package's code)
            package = entry.dist.name if entry.dist else "a package"
            logger.warning("forecaster %r of %s cannot be used: %s: %s", entry.name, package, type(error).__name__, error)


def load_forecaster(name: str, *, checkpoint: str | Path | None = None, device: str | torch.device = "cpu") -> Forecaster:
    """Get the forecaster `name` ready.

    Args:
        name: a key of `FORECASTERS`, or that of an installed package's forecaster.
        checkpoint: weights for `nino` and `wnn`, a published `.pt` or our `.safetensors`; None for the ones the package ships.
            The others have none.
        device: where it computes.

    Raises:
        UnknownForecaster: no such forecaster.
        CheckpointError: no checkpoint, or none for this forecaster.
    """
    discover()
    if name not in FORECASTERS:
        raise UnknownForecaster(f"forecaster {name!r} is not one of {', '.join(FORECASTERS)}", field="forecaster")
    cls = FORECASTERS[name]
    if issubclass(cls, LearnedForecaster):
        return cls(load_checkpoint(checkpoint or _path(name)), device=device)
    if checkpoint is not None:
        raise CheckpointError(f"{name!r} has no weights that {checkpoint} could hold; choose nino or wnn", field="checkpoint")
    forecaster = cls()
    if str(device) != "cpu":
        forecaster.device = torch.device(device)
    return forecaster


def forecaster_of(checkpoint: str | Path, *, device: str | torch.device = "cpu") -> LearnedForecaster:
    """The forecaster a file holds the weights of, `Nino` or `Wnn`, ready on a device; CheckpointError if it holds none."""
    weights = load_checkpoint(checkpoint)
    return (Nino if weights.options.graph else Wnn)(weights, device=device)


def load_forecasters(checkpoints: "Iterable[CheckpointFile]", *, device: str) -> Mapping[str, Forecaster]:
    """The forecasters that need no weights, those whose weights are given or come with the package, then those with names given.
    CheckpointError if a file cannot be used, or two without a name hold weights for the same forecaster.
    """
    discover()
    given: dict[str, Forecaster] = {}
    for file in checkpoints:
        forecaster = forecaster_of(file.path, device=device)
        name = file.name or forecaster.name
        if name in given:
            detail = f"{file.path} is the second checkpoint for {name!r}: give all but one a name (--checkpoint NAME=FILE)"
            raise CheckpointError(detail, field="checkpoints")
        given[name] = forecaster
    ready = [name for name, cls in FORECASTERS.items() if not issubclass(cls, LearnedForecaster) or _path(name).exists()]
    return {name: given.get(name) or load_forecaster(name, device=device) for name in ready} | given


def _path(name: str) -> Path:
    return SHIPPED / f"{name}-base.safetensors"
