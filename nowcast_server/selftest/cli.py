"""`nowcast-server selftest`: run the checks one after another; a failure does not stop the others."""

import json
import pkgutil
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import typer

from nowcast_server.device import check_device, choose_device
from nowcast_server.forecasters.registry import SHIPPED
from nowcast_server.nino.checkpoint import load_checkpoint
from nowcast_server.selftest import checks
from nowcast_server.selftest.checks import Setup

PLAIN: Final = "trainer_worker.metatrain.reference:Reference"


def selftest(device: str, checkpoint: Path | None, json_file: Path | None) -> int:
    """The command's exit status."""
    chosen = choose_device(device)
    check_device(chosen.device)
    weights = load_checkpoint(checkpoint or SHIPPED / "nino-base.safetensors")
    if chosen.note is not None:
        typer.echo(f"on the CPU: {chosen.note}")
    setup, done = Setup(torch.device(chosen.device), weights, plain_model()), []
    for outcome in outcomes(setup):
        done.append(outcome)
        said = _short(outcome.figures) if outcome.ok else outcome.detail
        typer.echo(f"{'ok' if outcome.ok else 'FAILED':<6} {outcome.name:<16} {outcome.seconds:6.1f} s  {said}")
    report = as_json(done, setup)
    typer.echo(f"{sum(outcome.ok for outcome in done)} of {len(done)} checks ok on {report['name']}, {report['seconds']:.0f} s")
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["ok"] else 1


def plain_model() -> Any:
    """What makes the model as one would write it down: no server needs it, nor the torch-geometric it stands on; None without."""
    with suppress(ImportError):
        return pkgutil.resolve_name(PLAIN)
    return None


class Outcome(NamedTuple):
    """Of one check: whether it held, and else what failed; the seconds it took, and the figures it measured."""

    name: str
    ok: bool
    seconds: float
    figures: dict[str, Any]
    detail: str


def outcomes(setup: Setup) -> Iterator[Outcome]:
    for name, check in checks.CHECKS.items():
        start = time.perf_counter()
        figures, detail = {}, ""
        try:
            with torch.no_grad():
                figures = check(setup)
        except checks.Failed as error:
            detail = str(error)
        except Exception as error:  # noqa: BLE001 -- whatever a device does is this check's outcome
            detail = f"{type(error).__name__}: {error}"
        yield Outcome(name, not detail, time.perf_counter() - start, figures, detail)


def as_json(done: list[Outcome], setup: Setup) -> dict[str, Any]:
    """All that is to be known, for a file."""
    return {
        "ok": all(outcome.ok for outcome in done),
        "device": str(setup.device),
        "name": torch.cuda.get_device_name(setup.device) if setup.cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "checkpoint": setup.checkpoint.name,
        "hidden": setup.checkpoint.options.hidden,
        "float32_products": torch.get_float32_matmul_precision(),
        "seconds": sum(outcome.seconds for outcome in done),
        "checks": [outcome._asdict() for outcome in done],
    }


def _short(figures: dict[str, Any]) -> str:
    parts = []
    for name, value in figures.items():
        if isinstance(value, dict):
            parts.append(f"{name}: {_short(value)}")
        else:
            parts.append(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(parts)
