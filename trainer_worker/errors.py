"""What a user can get wrong, and the words for why a nowcast was skipped."""

from typing import Final

from protos.errors import NowcastError


class BadArgument(ValueError):
    """An argument that cannot work, found before training starts.

    Args:
        argument: its name, e.g. `interval`.
        detail: what is wrong with it and how to mend it.
    """

    def __init__(self, argument: str, detail: str) -> None:
        super().__init__(f"{argument}: {detail}")
        self.argument = argument
        self.detail = detail


class CommandFailed(Exception):
    """A command cannot do what it was asked for; the message says why, and the way out."""


class RanksDiffer(RuntimeError):
    """The data-parallel workers do not train the same thing: weights, steps or settings differ between ranks."""


_REASONS: Final = {"unavailable": "server_unavailable", "deadline_exceeded": "late", "internal": "server_error"}

REASONS: Final = {
    "late": "The forecast had not arrived by the boundary at which it was due.",
    "server_unavailable": "The server could not be reached, or was starting or shutting down.",
    "server_error": "The server failed to make the forecast; its log says why.",
    "worker_error": "Something failed in the training process; its log has the traceback.",
}
"""Reasons for a skipped nowcast that are no error codes of the protocol, and what they mean."""


def reason_for(error: BaseException) -> str:
    """The stable word for a failure: the error's code, or `worker_error` for what is no error of the protocol.

    `server_unavailable`, `late`, `history_missing`, `bad_forecast`, `unknown_job`, `busy`, `server_error`, ...
    """
    if not isinstance(error, NowcastError):
        return "worker_error"
    return _REASONS.get(error.code, error.code)
