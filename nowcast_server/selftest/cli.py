"""`nowcast-server selftest`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def selftest(
    device: Annotated[str, typer.Option(help="Device to test: auto, cpu, cuda, cuda:1, …")] = "auto",
    checkpoint: Annotated[Path | None, typer.Option(help="Weights that replace the package's nino.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Check that forecasts are right on this machine's device, and how fast. Exit status 1 if a check fails."""
    import torch

    from nowcast_server.device import check_device, choose_device
    from nowcast_server.forecasters.registry import SHIPPED
    from nowcast_server.nino.checkpoint import load_checkpoint
    from nowcast_server.selftest.run import as_json, outcomes
    from protos.errors import NowcastError

    try:
        chosen = choose_device(device)
        check_device(chosen.device)
        weights = load_checkpoint(checkpoint or SHIPPED / "nino-base.safetensors")
    except NowcastError as error:
        typer.echo(f"nowcast-server: {error.detail}", err=True)
        sys.exit(2)
    if chosen.note is not None:
        typer.echo(f"on the CPU: {chosen.note}")
    place, done = torch.device(chosen.device), []
    for outcome in outcomes(place, weights):
        done.append(outcome)
        said = _short(outcome.figures) if outcome.ok else outcome.detail
        typer.echo(f"{'ok' if outcome.ok else 'FAILED':<6} {outcome.name:<16} {outcome.seconds:6.1f} s  {said}")
    report = as_json(done, device=place, checkpoint=weights)
    typer.echo(f"{sum(outcome.ok for outcome in done)} of {len(done)} checks ok on {report['name']}, {report['seconds']:.0f} s")
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(0 if report["ok"] else 1)


def _short(figures: dict[str, Any]) -> str:
    parts = []
    for name, value in figures.items():
        if isinstance(value, dict):
            parts.append(f"{name}: {_short(value)}")
        else:
            parts.append(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(parts)
