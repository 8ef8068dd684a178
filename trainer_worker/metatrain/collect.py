"""Collecting trajectories: train one study after another and store the snapshots of every lane."""

import math
import shutil
import time
from pathlib import Path
from typing import Self
from uuid import uuid4

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from nowcast_server.forecasters.registry import forecaster_of
from nowcast_server.trajectories.store import SUFFIX, TrajectoryWriter
from trainer_worker.metatrain.draw import Study, draw
from trainer_worker.metatrain.leaps import Leaper
from trainer_worker.metatrain.library import wiring_of
from trainer_worker.metatrain.stack import Snapshots, train

MOST_MOVED = 1000.0
"""A run whose weights went further has diverged."""


class CollectConfig(BaseModel):
    """A collection.

    Args:
        folder: of the store; a study is a folder in it.
        seed: of the collection.
        first: number of the first study.
        studies: how many.
        lanes: networks trained at once in a study, at most; twice as many of the cheapest kind.
        validation_share: share of studies on data that is never fitted to.
        longest: steps that studies of cheap networks are lengthened to; 0 for none.
        leaping: share of studies whose runs jump, so that a forecaster is fitted to what follows upon jumps.
        forecaster: checkpoint that says where to.
        workers: processes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    seed: int = 0
    first: int = Field(0, ge=0)
    studies: int = Field(400, ge=1)
    lanes: int = Field(8, ge=1)
    validation_share: float = Field(0.12, ge=0, le=1)
    longest: int = Field(0, ge=0)
    leaping: float = Field(0.0, ge=0, le=1)
    forecaster: Path | None = None
    workers: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _has_forecaster(self) -> Self:
        if self.leaping and self.forecaster is None:
            raise ValueError("leaping studies need a forecaster: the path of a checkpoint")
        return self

    def home(self, number: int) -> Path:
        """The folder of a study."""
        return self.folder / f"{self.seed}-{number:05d}"


def collect_study(config: CollectConfig, number: int) -> str:
    """Train a study and store it; what was done, in a line. Stopped at any moment, it has to be trained again."""
    shares = {"validation_share": config.validation_share, "leaping": config.leaping}
    study = draw(config.seed, number, lanes=config.lanes, longest=config.longest, **shares)
    started = time.monotonic()
    kept = run(study, config.home(number), forecaster=config.forecaster)
    about = f"{study.design.kind} {study.data} {study.design.widths} batch {study.batch_size} steps {study.steps}"
    return f"study {number}: {kept} runs, {about}, {time.monotonic() - started:.0f} s"


def run(study: Study, home: Path, *, forecaster: Path | None = None) -> int:
    """Train a study and store its runs in the folder `home`, which appears when they are complete. Returns how many there are.

    Runs that diverged are left out. Where another process has stored the same study meanwhile, its runs stay.
    """
    settings = {"batch_size": study.batch_size, "steps": study.steps, "every": study.every}
    leap = _leaper(study, forecaster)
    snapshots = list(train(study.design, study.lanes, study.feed(), **settings, seed=study.number, leap=leap))
    draft = home.with_name(f".{home.name}.{uuid4().hex}")
    draft.mkdir(parents=True)
    try:
        for lane in range(len(study.lanes)):
            _store(study, lane, snapshots, draft / f"{lane:02d}{SUFFIX}")
        draft.replace(home)
    except OSError:
        if not home.exists():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for other in home.parent.glob(f".{home.name}.*"):
        shutil.rmtree(other, ignore_errors=True)  # a killed process left it, or one that will find `home` there
    return len(list(home.glob(f"*{SUFFIX}")))


def _leaper(study: Study, forecaster: Path | None) -> Leaper | None:
    if study.leaps is None or forecaster is None:
        return None
    return Leaper(study.leaps, forecaster_of(forecaster), wiring_of(study.design))


def _store(study: Study, lane: int, snapshots: list[Snapshots], path: Path) -> None:
    first = snapshots[0].states[lane].numpy()
    header = {**study.header(lane), "final_loss": float(snapshots[-1].losses[lane])}
    moved = [float((snapshot.states[lane] - snapshots[0].states[lane]).abs().max()) for snapshot in snapshots]
    if not (math.isfinite(header["final_loss"]) and all(distance <= MOST_MOVED for distance in moved)):  # NaN is not
        return
    with TrajectoryWriter(path, first, header=header) as writer:
        for snapshot in snapshots:
            state, loss = np.asarray(snapshot.states[lane]), float(snapshot.losses[lane])
            writer.append(snapshot.step, state, loss=loss, segment=snapshot.segment)
