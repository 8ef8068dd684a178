"""Errors that users see, and the reasons for skipped nowcasts."""

from typing import Final

from protos.errors import NowcastError


class BadArgument(ValueError):
    """An argument that cannot work. Raised before training starts.

    Args:
        argument: its name, e.g. `interval`.
        detail: what is wrong with it, and what to do.
    """

    def __init__(self, argument: str, detail: str) -> None:
        super().__init__(f"{argument}: {detail}")
        self.argument = argument
        self.detail = detail


class CommandFailed(Exception):
    """A command failed; the message says why, and what to do."""


class RanksDiffer(RuntimeError):
    """Weights, steps or settings differ between data-parallel ranks."""


_REASONS: Final = {"unavailable": "server_unavailable", "deadline_exceeded": "late", "internal": "server_error"}

REASONS: Final = {
    "late": "The forecast had not arrived by the boundary at which it was due.",
    "server_unavailable": "The server could not be reached, or was starting or shutting down.",
    "server_error": "The server failed to make the forecast; its log says why.",
    "worker_error": "Something failed in the training process; its log has the traceback.",
}
"""Reasons for a skipped nowcast that are no error codes of the protocol, and what they mean."""


def reason_for(error: BaseException) -> str:
    """The stable word for a failure: the error's code, or `worker_error` for errors outside the protocol.

    `server_unavailable`, `late`, `history_missing`, `bad_forecast`, `unknown_job`, `busy`, `server_error`, ...
    """
    if not isinstance(error, NowcastError):
        return "worker_error"
    return _REASONS.get(error.code, error.code)
