"""Options of the commands that start a server, as its settings."""

from typing import TYPE_CHECKING, Any, Final

import typer

if TYPE_CHECKING:
    from nowcast_server.settings import Settings

CHECKPOINT_HELP: Final = (
    "Weights that replace the package's nino or wnn; with a NAME, a further forecaster of that name. May be repeated."
)


def settings_of(given: dict[str, Any]) -> "Settings":
    """The settings, those that are None left to the environment.

    Raises:
        typer.BadParameter: one is not valid; it names the option.
    """
    from pydantic import ValidationError

    from nowcast_server.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        option = {"checkpoints": "checkpoint"}.get(str(first["loc"][0]), str(first["loc"][0])).replace("_", "-")
        raise typer.BadParameter(first["msg"].removeprefix("Value error, "), param_hint=f"--{option}") from None
