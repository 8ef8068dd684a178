"""The table of what servers have to have: people buy machines by it."""

from typing import Any

import pytest
import scripts

sizing = scripts.load("bench/sizing.py")
Server = sizing.Server


def test_table_in_the_docs_is_the_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    """The page would show figures of another version."""
    sizing.main([])
    assert capsys.readouterr().out in (scripts.ROOT / "docs" / "deploy.md").read_text()


@pytest.mark.parametrize(
    ("server", "count"),
    [
        (Server(memory_bytes=50e6, bits_s=1e12, ns=0), 5),  # 24 MB a job: two fit
        (Server(memory_bytes=1e12, bits_s=1e12, ns=2500), 5),  # 2.5 s of every 10 s a job: two in half of the time
        (Server(memory_bytes=1e12, bits_s=6.4e6, ns=0), 10),  # 3.2 Mbit/s a job: one in half of the network
        (Server(memory_bytes=20e6, bits_s=1e12, ns=0), None),
        (Server(memory_bytes=1e12, bits_s=1e12, ns=20_000), None),
    ],
    ids=["memory", "device", "network", "too-large", "too-slow"],
)
def test_scarcest_resource_decides(server: Any, count: int | None) -> None:
    """Ten jobs of a million weights would be put on too few servers, or on one that cannot serve them at all."""
    assert sizing.servers(sizing.Job(weights=10**6, interval_s=10), 10, server) == count
