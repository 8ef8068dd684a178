"""`nowcast metatrain`: collect trajectories, fit a forecaster to them, see how good it is."""

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Make forecasters: collect trajectories of training runs and fit to them.", no_args_is_help=True)

Config = Annotated[Path, typer.Argument(help="TOML file; deploy/metatrain/ has those behind nino-base.")]


@app.command()
def collect(config: Config) -> None:
    """Train the networks of CONFIG and record them. It can be stopped at any time; the next call continues."""
    from nowcast_server.nino.checkpoint import CheckpointError
    from trainer_worker.metatrain.collect import CollectConfig
    from trainer_worker.metatrain.workers import collect_local

    _log()
    try:
        collect_local(_read(CollectConfig, config))
    except CheckpointError as error:
        raise typer.BadParameter(str(error), param_hint="CONFIG") from None


@app.command()
def fit(config: Config) -> None:
    """Fit a forecaster to trajectories. An interrupted fit continues, and gives the same weights bit for bit."""
    from nowcast_server.nino.checkpoint import CheckpointError
    from trainer_worker.metatrain.fit import FitConfig
    from trainer_worker.metatrain.fit import fit as run

    _log()
    try:
        typer.echo(run(_read(FitConfig, config)))
    except (ValueError, FloatingPointError, CheckpointError) as error:
        raise typer.BadParameter(str(error), param_hint="CONFIG") from None


@app.command()
def show(folder: Annotated[Path, typer.Argument(help="Folder of trajectories.")]) -> None:
    """Count the networks, runs and snapshots of each task in FOLDER."""
    from rich.console import Console
    from rich.table import Table

    from trainer_worker.metatrain.library import Library, describe

    if not folder.is_dir():
        raise typer.BadParameter(f"there is no folder {folder}", param_hint="FOLDER")
    rows = describe(Library.open(folder))
    table = Table("task", "networks", "runs", "snapshots")
    for task, counts in sorted(rows.items()):
        table.add_row(task, *(str(count) for count in counts.values()))
    Console().print(table)


@app.command()
def judge(
    folder: Annotated[Path, typer.Argument(help="Folder of trajectories; those for validation are used.")],
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoints of forecasters, published ones included.")],
    *,
    stride: Annotated[int, typer.Option(help="Distance of a context's snapshots, in recorded snapshots.")] = 2,
    held: Annotated[list[str] | None, typer.Option(help="Judge also on tasks whose names start with this.")] = None,
    loss: Annotated[bool, typer.Option("--by-loss", help="Print the steps saved from recorded states (minutes).")] = False,
) -> None:
    """Print the skill of CHECKPOINTS and of the baselines on validation runs, by kind of network and horizon."""
    from rich.console import Console
    from rich.table import Table

    from nowcast_server.nino.checkpoint import CheckpointError
    from trainer_worker.errors import BadArgument
    from trainer_worker.metatrain.by_loss import by_loss
    from trainer_worker.metatrain.by_loss import table as rows_of
    from trainer_worker.metatrain.library import Library
    from trainer_worker.metatrain.skill import HORIZONS, RIVALS, load_predictor, skill

    library = Library.open(folder, held=tuple(held or ()))
    if not library.validation:
        tasks = ", ".join(sorted({group.task for group in library.training}))
        raise typer.BadParameter(
            f"no run in {folder} is held to judge by; --held names tasks of: {tasks or '(none)'}", param_hint="FOLDER"
        )
    if loss and not any(group.design for group in library.validation):
        raise typer.BadParameter("no run to judge by can be gone on from: --by-loss needs `collect`'s", param_hint="FOLDER")
    stems = [path.stem for path in checkpoints]
    named = {path.stem if stems.count(path.stem) == 1 else str(path): path for path in checkpoints}
    try:
        if loss:
            found = list(by_loss(library.validation, {"linear": "linear", "spectral": "spectral", **named}))
            falling = sum(bool(compared.saved) for compared in found)
            table = Table("forecaster", "networks", "steps saved", "more than linear", "states")
            table.caption = f"{len(found) - falling} of {len(found)} states left out: their loss no longer falls"
            for row in rows_of(found):
                saved, ahead = (f"{value:+.1%} ± {error:.1%}" for value, error in (row.saved, row.ahead))
                table.add_row(row.forecaster, row.kind, saved, ahead if row.forecaster != "linear" else "", str(row.states))
        else:
            predictors = {**RIVALS, **{name: load_predictor(path) for name, path in named.items()}}
            table = Table("forecaster", "networks", *(f"k={horizon}" for horizon in HORIZONS))
            for name, scopes in skill(library.validation, predictors, stride=stride).items():
                for scope, values in sorted(scopes.items()):
                    table.add_row(name, scope, *(f"{value:.3f}" for value in values.values()))
    except (CheckpointError, BadArgument) as error:
        raise typer.BadParameter(str(error), param_hint="CHECKPOINTS") from None
    Console().print(table)


def _read(model: Any, path: Path) -> Any:
    import tomllib

    from pydantic import ValidationError

    try:
        return model(**tomllib.loads(path.read_text(encoding="utf-8-sig")))  # Windows editors begin a file with a byte order mark
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}", param_hint="CONFIG") from None
    except (OSError, ValueError) as error:  # it is not TOML, or not UTF-8
        raise typer.BadParameter(f"{path}: {error}", param_hint="CONFIG") from None


def _log() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
