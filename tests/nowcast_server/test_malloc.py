"""Memory that was freed goes back to the system."""

import subprocess
import sys
import threading

import pytest
from server_kit import Start

from nowcast_server import service

HOLES = """
from pathlib import Path
from nowcast_server.malloc import keep_freed_memory, trim_freed_memory

def resident_mb():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024

keep_freed_memory()
blocks = [bytearray(2**20) for _ in range(200)]
last, full = blocks.pop(), resident_mb()
blocks.clear()
kept = resident_mb()
trim_freed_memory()
print(full - kept, full - resident_mb())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_memory_below_a_block_in_use_goes_back() -> None:
    """A server that once had many large requests at once would keep their memory as long as one small object lies above it."""
    shown = subprocess.run([sys.executable, "-c", HOLES], check=True, capture_output=True, text=True, timeout=120).stdout
    freed_mb, trimmed_mb = map(float, shown.split())
    assert freed_mb < 100, "a hole is returned anyway"
    assert trimmed_mb > 180


def test_a_server_trims_from_time_to_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would give the memory back."""
    trimmed = threading.Event()
    monkeypatch.setattr(service, "TRIM_EVERY_S", 0.01)
    monkeypatch.setattr(service, "trim_freed_memory", trimmed.set)
    start()
    assert trimmed.wait(60)
