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


class RanksDiffer(RuntimeError):
    """The data-parallel workers do not train the same thing: weights, steps or settings differ between ranks."""


DECISIONS: Final = {
    "shadow": "the run only scores forecasts (`shadow`)",
    "paused": "the run sits periods out after jumps that were undone: 1, 2, 4, 8, 8, ...",
    "budget_spent": "trials may not cost more: `Guard.budget` in steps, or `Guard.tolerance` in loss",
    "under_trial": "the jump before is not judged yet",
    "no_time_to_recover": "the run ends before a jump could be judged",
    "loss_rising": "the held loss rises, as where a run overfits: further along that course it would rise further",
    "no_loss": "the held loss is not finite",
    "rate_spent": "so little is left of a falling learning rate that no horizon is worth it",
}
"""Why a run itself decides to load no forecast."""

_REASONS: Final = {"unavailable": "server_unavailable", "deadline_exceeded": "timeout", "internal": "server_error"}


def reason_for(error: BaseException) -> str:
    """The stable word for a failure: the error's code, or `worker_error` for what is no error of the protocol.

    `server_unavailable`, `timeout`, `history_missing`, `bad_forecast`, `unknown_job`, `busy`, `server_error`, ...
    """
    if not isinstance(error, NowcastError):
        return "worker_error"
    return _REASONS.get(error.code, error.code)
