"""Resuming runs. A run resumes only with the configuration it was started with, which its checkpoints and its record hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from trainer_worker.errors import BadArgument
from trainer_worker.training.records import Order, Record, RunRecord
from trainer_worker.training.storage import forget

WAYS_OUT: Final = "start over with --fresh, or choose another --out (of a submitted job: another --name)"


class _Finished(Record):
    """A run's record, and what it was ordered with."""

    terms: dict[str, Any]
    record: RunRecord


def terms(order: Order) -> dict[str, Any]:
    """What a run's weights and curves depend on, by key of the configuration, as JSON values.

    Where data, servers and results are is not among it, nor what changes nothing in a run; seed and forecaster are in its name.
    """
    config, table = order.config, order.arm.nowcast
    tables: dict[str, dict[str, Any]] = {
        "task": config.task.model_dump(mode="json", exclude={"data"}),
        "train": config.train.model_dump(mode="json", exclude={"seeds", "checkpoint_every"}),
        "nowcast": table.model_dump(mode="json", exclude={"server", "record"}) if table else {},
        "workers": {"count": config.workers.count},
    }
    return {f"{name}.{key}": value for name, values in tables.items() for key, value in values.items()}


def check(order: Order, begun: dict[str, Any] | None) -> None:
    """See that a run was begun with the terms it is ordered with now; more steps are no other ones.

    Raises:
        BadArgument: it was not, or does not say.
    """
    if begun is None:
        raise BadArgument("--resume", f"{order.name} does not record the configuration it was started with: {WAYS_OUT}")
    changed = [(key, begun.get(key, value), value) for key, value in terms(order).items()]  # there may be keys that were not yet
    different = [
        f"{key} = {was}, not {value}" for key, was, value in changed if was != value and not (key == "train.steps" and was < value)
    ]
    if different:
        raise BadArgument("--resume", f"{order.name} was started with {', '.join(different)}: use that again, {WAYS_OUT}")


def begin(orders: Sequence[Order], *, resume: bool) -> None:
    """Make ready for the runs: without `resume` everything there is of them is deleted, all before the first; with it, finished
    ones are checked.

    Raises:
        BadArgument: see `check`.
        StorageUnusable: see `storage.resolve`.
    """
    for order in orders if resume else ():
        if kept := _kept(order):
            check(order, kept.terms)
    for order in orders:
        if not resume:
            forget(order.config.output.place, order.name)
        if not resume or finished(order) is None:
            _file(order).unlink(missing_ok=True)


def finished(order: Order) -> RunRecord | None:
    """The record that is kept of a run, if it is as long as it should be."""
    kept = _kept(order)
    return kept.record if kept and kept.record.evaluations[-1].step == order.config.train.steps else None


def keep(order: Order, record: RunRecord) -> None:
    """Keep a finished run."""
    file = _file(order)
    file.parent.mkdir(parents=True, exist_ok=True)  # Ray may have unpacked a job's working directory anew meanwhile
    file.write_text(_Finished(terms=terms(order), record=record).model_dump_json(), encoding="utf-8")


def _file(order: Order) -> Path:
    return order.config.output.folder / "runs" / f"{order.name}.json"


def _kept(order: Order) -> _Finished | None:
    """None if there is none that can be read: then there are the checkpoints."""
    try:
        return _Finished.model_validate_json(_file(order).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
