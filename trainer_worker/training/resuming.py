"""Resuming runs. A run resumes only with the configuration that was stored beside its checkpoints."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from trainer_worker.errors import CommandFailed
from trainer_worker.training.records import Order, Record, RunRecord
from trainer_worker.training.storage import folders, forget, read, write

TERMS: Final = "order.json"
"""In the folder of a run's checkpoints."""
WAYS_OUT: Final = "start over with --fresh, or choose another --out (of a submitted job: another --name)"


class CannotResume(CommandFailed):
    """A run was started with another configuration; the message names the keys, and what to do."""


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
        "train": config.train.model_dump(mode="json", exclude={"seeds", "checkpoint_every", "target"}),
        "nowcast": table.model_dump(mode="json", exclude={"server", "record"}) if table else {},
        "workers": {"count": config.workers.count},
    }
    return {f"{name}.{key}": value for name, values in tables.items() for key, value in values.items()}


def check(orders: Sequence[Order]) -> None:
    """See that what there is of the runs was begun with the same configuration; more steps are no other one.

    Raises:
        CannotResume: it was not.
        StorageUnusable: see `storage.resolve`.
    """
    for order in orders:
        for place, begun in _begun(order):
            if begun is None:
                raise CannotResume(f"{place} does not record the configuration it was started with: {WAYS_OUT}")
            if different := ", ".join(_differences(begun, terms(order))):
                raise CannotResume(f"{place} was started with {different}: use that again, {WAYS_OUT}")


def begin(orders: Sequence[Order], *, resume: bool) -> None:
    """Note what the runs are ordered with; without `resume` everything there is of them is deleted first.

    All before the first run: a comparison is unfinished until its last run is, and never of two configurations.

    Raises:
        StorageUnusable: see `storage.resolve`.
    """
    for order in orders:
        if not resume:
            forget(order.config.output.place, order.name)
        if not resume or finished(order) is None:
            _file(order).unlink(missing_ok=True)
    for order in orders:
        write(order.config.output.place, f"{order.name}/{TERMS}", json.dumps(terms(order), indent=1).encode())


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


def _begun(order: Order) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """What there is of a run, and what it was ordered with; None if it does not say."""
    if kept := _kept(order):
        yield str(_file(order)), kept.terms
    place = order.config.output.place
    if order.name in folders(place):
        try:
            yield f"{place}/{order.name}", json.loads(read(place, f"{order.name}/{TERMS}") or b"null")
        except ValueError:  # cut off
            yield f"{place}/{order.name}", None


def _differences(begun: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for key, value in now.items():
        was = begun.get(key, value)  # a key that there was not yet
        if was != value and not (key == "train.steps" and was < value):
            yield f"{key} = {was}, not {value}"
