"""`nowcast wire`: how a network of the user's is wired, as a table and a picture."""

import inspect
import sys
from importlib import import_module
from pathlib import Path

from rich.console import Console
from torch import nn

from trainer_worker.wiring import describe, draw, show


def load_module(place: str) -> nn.Module:
    """Call what `package.module:callable` names, in the working directory or installed; a network in itself is taken as it is.

    Raises:
        ValueError: the place is not of that form, cannot be imported, or does not give a network.
    """
    name, colon, attribute = place.partition(":")
    if not (name and colon and attribute):
        raise ValueError(f"{place!r} is not of the form MODULE:CALLABLE, e.g. mypackage.models:build")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(import_module(name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{place}: {error}") from None
    if not isinstance(found, nn.Module):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise ValueError(f"{place} cannot be called without arguments: {error}") from None
        found = found()
    if not isinstance(found, nn.Module):
        raise ValueError(f"{place} gives a {type(found).__name__}, not a torch.nn.Module")  # noqa: TRY004 -- the value is at fault
    return found


def wire_module(place: str, console: Console, *, picture: Path | None = None) -> None:
    """Print how the network at `place` is wired, and draw its graph.

    Raises:
        ValueError: see `load_module`.
        BadWiring: the network has a parameter that cannot be forecast.
    """
    report = describe(load_module(place))
    show(report, console)
    console.print(f"hash {report.wiring.hash}", highlight=False)
    if picture is not None:
        draw(report, picture)
        console.print(f"wrote {picture}", highlight=False)
