"""What a run says of the cluster's resources, without a cluster."""

import logging

import pytest

pytest.importorskip("ray", reason="ray is not installed")
from trainer_worker.training import ray_cluster as room

GPUS, CPUS = {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}


@pytest.mark.parametrize(
    ("free", "each", "told"),
    [(GPUS, {"CPU": 1}, ["training on CPUs while 2 GPUs"]), (GPUS, {"CPU": 1, "GPU": 1}, []), (CPUS, {"CPU": 1}, [])],
    ids=["idle", "used", "none"],
)
def test_idle_gpus_are_told(
    free: dict[str, float],
    each: dict[str, float],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run submitted without --gpus would train on the CPUs of a GPU cluster, and nobody would notice before the bill."""
    monkeypatch.setattr(room, "_resources", lambda: (free, free))
    monkeypatch.setattr(room, "placement_group_table", dict)
    with caplog.at_level(logging.WARNING), room.warned_without_room(1, each):
        pass
    assert [message.partition(" of ")[0] for message in caplog.messages] == told
