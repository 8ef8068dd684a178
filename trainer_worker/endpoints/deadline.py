"""How long something may still take."""

import time

from protos.errors import DeadlineExceeded


class Deadline:
    """A moment on the monotonic clock.

    Args:
        seconds: from now; infinity for never.
    """

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds that remain; negative once it has passed."""
        return self._at - time.monotonic()

    def check(self, what: str) -> float:
        """Seconds that remain.

        Raises:
            DeadlineExceeded: none do.
        """
        left_s = self.left_s
        if left_s <= 0:
            raise DeadlineExceeded(f"{what} took longer than it may")
        return left_s
