"""The trajectories that a forecaster is fitted to or judged on, grouped by network."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch

from nowcast_server.trajectories.store import Trajectory, trajectories
from protos.wiring import Wiring
from trainer_worker.metatrain.networks import Design


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one network on one task.

    Args:
        task: e.g. `convnet/fashion`; the part before the slash is the kind.
        runs: at least one.
    """

    task: str
    runs: tuple[Trajectory, ...]

    @property
    def kind(self) -> str:
        return self.task.split("/")[0]

    @property
    def design(self) -> Design | None:
        """None for runs recorded by a server, which knows their wiring only."""
        design = self.runs[0].header.get("design")
        return Design.from_dict(design) if design else None

    @cached_property
    def wiring(self) -> Wiring:
        return wiring_of(self.design) if self.design else Wiring.from_dict(self.runs[0].header["wiring"])


@dataclass(frozen=True)
class Library:
    """Groups to fit to and groups to judge by."""

    training: tuple[Group, ...]
    validation: tuple[Group, ...]

    @classmethod
    def open(cls, folder: Path, *, least: int = 20, without: tuple[str, ...] = (), held: tuple[str, ...] = ()) -> "Library":
        """`of` what lies below `folder`."""
        return cls.of(trajectories(folder), least=least, without=without, held=held)

    @classmethod
    def of(
        cls, runs: Iterable[Trajectory], *, least: int = 20, without: tuple[str, ...] = (), held: tuple[str, ...] = ()
    ) -> "Library":
        """Runs cut where they jumped, into pieces of at least `least` snapshots; without those whose wiring has no blocks, as a job
        that needs no graph may have: there is nothing to learn from them.

        Args:
            runs: whole.
            least: snapshots.
            without: tasks to leave out, by the start of their names.
            held: tasks that only judge, by the start of their names, besides those collected for it.
        """
        found: dict[tuple[bool, str, str], list[Trajectory]] = defaultdict(list)
        for run in (piece for whole in runs for piece in whole.pieces()):
            task = str(run.header.get("task", "recorded"))
            network = run.header.get("design") or run.header["wiring"]
            if len(run.steps) < least or task.startswith(without or ("\0",)) or network.get("blocks") == []:
                continue
            validation = bool(run.header.get("validation")) or task.startswith(held or ("\0",))
            found[validation, task, json.dumps(network)].append(run)
        groups = {key: Group(key[1], tuple(runs)) for key, runs in found.items()}
        return cls(
            training=tuple(group for (validation, *_), group in groups.items() if not validation),
            validation=tuple(group for (validation, *_), group in groups.items() if validation),
        )


@lru_cache(maxsize=1024)
def wiring_of(design: Design) -> Wiring:
    """The wiring of a design's network."""
    from trainer_worker.wiring import wire

    tokens = torch.zeros(2, design.tokens, dtype=torch.int64)  # as many as there are places for, so that all are seen
    return wire(design.build(), tokens if design.kind == "gpt" else None)


def describe(library: Library) -> dict[str, dict[str, int]]:
    """How many networks, runs and snapshots of each task a library holds."""
    table: dict[str, dict[str, int]] = {}
    for part, groups in (("training", library.training), ("validation", library.validation)):
        for group in groups:
            row = table.setdefault(f"{part} {group.task}", {"networks": 0, "runs": 0, "snapshots": 0})
            row["networks"] += 1
            row["runs"] += len(group.runs)
            row["snapshots"] += sum(len(run.steps) for run in group.runs)
    return table
