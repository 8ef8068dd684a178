"""A memory budget: reserve before use."""

import threading

from protos.errors import OutOfMemoryBudget


class Budget:
    """So many bytes, taken and given back. Any thread may use it.

    Args:
        limit_bytes: there are.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._kept_bytes = 0  # of those used: never given back
        self._lock = threading.Lock()

    @property
    def left_bytes(self) -> int:
        return self.limit_bytes - self.used_bytes

    @property
    def most_bytes(self) -> int:
        """There would be if all was given back that will be."""
        return self.limit_bytes - self._kept_bytes

    def check(self, size_bytes: int, *, what: str) -> None:
        """Could so many bytes ever be had?

        Raises:
            OutOfMemoryBudget: there will never be so many.
        """
        most_bytes = self.most_bytes
        if size_bytes > most_bytes:
            detail = f"{what} needs {size_bytes} bytes; there are {most_bytes} in all"
            raise OutOfMemoryBudget(detail, needed_bytes=size_bytes, limit_bytes=most_bytes)

    def check_left(self, size_bytes: int, *, what: str) -> None:
        """Could so many bytes be had now? Raises as `take` does."""
        if size_bytes > self.left_bytes:
            detail = f"{what} needs {size_bytes} bytes, more than are left of {self.limit_bytes}"
            raise OutOfMemoryBudget(detail, needed_bytes=size_bytes, limit_bytes=self.limit_bytes)

    def take(self, size_bytes: int, *, what: str) -> None:
        """Set bytes aside for as long as `what` lives.

        Raises:
            OutOfMemoryBudget: they are not to be had. How many are left is not said: others' use is their own business.
        """
        with self._lock:
            self.check_left(size_bytes, what=what)
            self.used_bytes += size_bytes

    def try_take(self, size_bytes: int) -> bool:
        """Set bytes aside, if they are to be had."""
        with self._lock:
            if size_bytes > self.left_bytes:
                return False
            self.used_bytes += size_bytes
            return True

    def keep(self, size_bytes: int, *, what: str) -> None:
        """Set bytes aside for good. Raises as `take` does."""
        self.take(size_bytes, what=what)
        self._kept_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        with self._lock:
            self.used_bytes -= size_bytes
