"""What a run says of the cluster's resources, without a cluster."""

import logging

import pytest

pytest.importorskip("ray", reason="ray is not installed")
from trainer_worker.training import ray_cluster as room

GPUS, CPUS = {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}


@pytest.mark.parametrize(
    ("free", "each", "told"),
    [
        (GPUS, {"CPU": 1}, ["training on CPUs while 2 GPUs"]),
        (GPUS, {"CPU": 1, "GPU": 1}, []),
        (CPUS, {"CPU": 1}, []),
        (CPUS, {"CPU": 9}, ["the workers wait for room on the Ray cluster (CPU: 1 x 9 asked for, 8"]),
    ],
    ids=["idle", "used", "none", "full"],
)
def test_what_is_free_or_short_is_told(
    free: dict[str, float],
    each: dict[str, float],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run without --gpus would train on the CPUs of a GPU cluster until the bill; one without room wait for ever, silently."""
    monkeypatch.setattr(room, "PATIENCE_S", 0.0)
    monkeypatch.setattr(room, "_resources", lambda: (free, free))
    with caplog.at_level(logging.WARNING):
        room.warn_without_room(1, each)
    assert [message.partition(" of ")[0] for message in caplog.messages] == told
