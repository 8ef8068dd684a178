"""Whether anything listens where a Ray cluster is said to be: Ray's own clients wait for minutes, and end in a traceback."""

import socket
from typing import Final
from urllib.parse import urlsplit

REACH_S: Final = 5.0


def reach(address: str) -> None:
    """Try http://HEAD:8265, ray://HEAD:10001 or HEAD:6379. Raises OSError: nothing listens there; ValueError: no such port."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if port := parts.port or {"http": 80, "https": 443}.get(parts.scheme):  # `auto` is for Ray to find
        socket.create_connection((parts.hostname or "", port), timeout=REACH_S).close()
