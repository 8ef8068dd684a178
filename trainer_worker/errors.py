"""Errors that users see, and the reasons for skipped nowcasts."""

from typing import Final

from protos.errors import NowcastError


class BadArgument(ValueError):
    """An argument that cannot work, raised before training starts: its name, what is wrong with it, and what to do."""

    def __init__(self, argument: str, detail: str) -> None:
        super().__init__(f"{argument}: {detail}")
        self.argument, self.detail = argument, detail


class CommandFailed(Exception):
    """A command failed; the message says why, and what to do."""


class RanksDiffer(RuntimeError):
    """Weights, steps or settings differ between data-parallel ranks."""


_REASONS: Final = {"unavailable": "server_unavailable", "deadline_exceeded": "late", "internal": "server_error"}

REASONS: Final = {  # for a skipped nowcast that are no error codes of the protocol, and what they mean
    "late": "The forecast had not arrived by the boundary at which it was due.",
    "server_unavailable": "The server could not be reached, or was starting or shutting down.",
    "server_error": "The server failed to make the forecast; its log says why.",
    "worker_error": "Something failed in the training process; its log has the traceback.",
}


def reason_for(error: BaseException) -> str:
    """The stable word for a failure: the error's code, or one of `REASONS`."""
    return _REASONS.get(error.code, error.code) if isinstance(error, NowcastError) else "worker_error"
