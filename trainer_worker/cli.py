"""The command `nowcast`: train, compare, wire, keys, jobs on a cluster. Heavy imports come after the arguments are parsed."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from protos import command
from protos.messages import Dtype, Mode
from trainer_worker.cluster.cli import app as submit_app
from trainer_worker.errors import BadArgument, CommandFailed
from trainer_worker.metatrain.cli import app as metatrain_app

if TYPE_CHECKING:
    from trainer_worker.training.config import Config


class _Told(TyperGroup):
    """Ends with one line where a command fails for a reason that says what to do."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (CommandFailed, BadArgument) as error:
            typer.secho(str(error), err=True, fg="red")
            raise typer.Exit(2) from None


app = typer.Typer(
    name="nowcast",
    cls=_Told,
    callback=command.with_version,
    help="Train models with nowcasts, compare runs with and without, submit jobs, and fit forecasters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(submit_app)
app.add_typer(metatrain_app, name="metatrain")

ConfigFile = Annotated[Path, typer.Argument(help="TOML file; see deploy/demo.toml and `nowcast keys`.", show_default=False)]
Server = Annotated[str | None, typer.Option(help="URL of a nowcast server; `own` to start one for this command; or `embedded`.")]
Forecaster = Annotated[str | None, typer.Option(help="spectral, linear, nino, …, or a file of weights.")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps of a run.")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="Seed of a run; may be repeated.")]
Out = Annotated[Path | None, typer.Option(help="Folder for results and checkpoints.")]
Storage = Annotated[str | None, typer.Option(help="For checkpoints instead of --out, and results too: a path, s3://, gs://, …")]
Address = Annotated[str | None, typer.Option(help="Address of a running Ray cluster, or auto.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over even if the folder has an unfinished run.")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume from the checkpoints in the results folder.")]


def _job(*, compared: bool) -> Callable[..., None]:
    """The command that trains a configuration."""

    def command(
        config: ConfigFile,
        *,
        server: Server = None,
        forecaster: Forecaster = None,
        steps: Steps = None,
        seed: Seeds = None,
        out: Out = None,
        storage: Storage = None,
        address: Address = None,
        resume: Resume = False,
        fresh: Fresh = False,
    ) -> None:
        overrides = {
            "nowcast.server": server,
            "nowcast.forecaster": forecaster,
            "train.steps": steps,
            "train.seeds": seed or None,
            "output.folder": out,
            "output.storage": storage,
            "workers.address": address,
        }
        from trainer_worker.training.config import load_config

        _run(load_config(config, overrides=overrides, compared=compared), compared=compared, resume=resume, fresh=fresh)

    return command


app.command("train", help="Train the job of CONFIG, with nowcasts if its table or an option asks for them.")(_job(compared=False))
app.command("compare", help="Train the job of CONFIG without and with nowcasts, same seeds and batches.")(_job(compared=True))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Results folders of `nowcast compare`.", metavar="RUN…", show_default=False)],
    *,
    out: Annotated[Path | None, typer.Option(help="File to write; by default report.html in the RUN, or here for several.")] = None,
    training_map: Annotated[
        Path | None, typer.Option("--map", help="A map of training to include, drawn by `nowcast-server embed --out map.svg`.")
    ] = None,
) -> None:
    """Write one HTML report about RUNs: whether nowcasts helped, how much, at what cost, and how certain that is."""
    from trainer_worker.comparison.report import read, write_page

    try:
        summaries = [read(run) for run in runs]
        alone = runs[0] if runs[0].is_dir() else runs[0].parent
        written = write_page(summaries, out or (alone if len(runs) == 1 else Path()) / "report.html", training_map=training_map)
    except (OSError, ValueError) as error:
        raise CommandFailed(str(error)) from error
    typer.echo(f"wrote {written}")


@app.command()
def wire(
    module: Annotated[str, typer.Argument(help="MODULE:CALLABLE that returns the network; imports MODULE.", show_default=False)],
    *,
    inputs: Annotated[
        str | None, typer.Option(help="What forward takes, if guessing fails: 2x3x32x32, 2x16:int64,2x16:bool or MODULE:CALLABLE.")
    ] = None,
    picture: Annotated[Path | None, typer.Option("--draw", help="Also draw the network into this file (SVG).")] = None,
) -> None:
    """Show how a network is wired: its blocks, neurons and edges."""
    from rich.console import Console

    from protos.errors import BadWiring
    from trainer_worker.wiring import draw, show
    from trainer_worker.wiring.cli import describe_module

    try:
        report = describe_module(module, inputs=inputs)
        show(report, Console())
        if picture is not None:
            draw(report, picture)
            typer.echo(f"wrote {picture}")
    except (ValueError, OSError, BadWiring) as error:
        raise CommandFailed(str(error)) from error


@app.command()
def doctor(
    module: Annotated[
        str | None, typer.Argument(help="MODULE:CALLABLE that returns the network; imports MODULE.", show_default=False)
    ] = None,
    *,
    server: Annotated[str | None, typer.Option(help="URL of a nowcast server.", show_default="NOWCAST_SERVER, or none")] = None,
    mode: Annotated[Mode, typer.Option(help="Mode of the run.")] = "glide",
    forecaster: Annotated[str | None, typer.Option(help="Forecaster of the run.", show_default="the mode's")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Precision of snapshots.")] = "float32",
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps of the run.", min=1)] = None,
    inputs: Annotated[str | None, typer.Option(help="What forward takes, as for `nowcast wire`.")] = None,
) -> None:
    """Check a network and a server before training, and say what to do. The token is read from NOWCAST_TOKEN."""
    import os

    server = server or os.environ.get("NOWCAST_SERVER", "").strip() or None
    server = None if server == "embedded" else server
    if module is None and server is None:
        raise CommandFailed("give MODULE:CALLABLE, --server URL, or both")
    from trainer_worker.doctor import Question, examine

    question = Question(forecaster, mode, dtype, max_steps)
    findings = examine(module, server, question, token=os.environ.get("NOWCAST_TOKEN"), inputs=inputs)
    for finding in findings:
        typer.echo(f"{'ok     ' if finding.fine else 'PROBLEM'}  {finding.text}")
    if not all(finding.fine for finding in findings):
        raise typer.Exit(1)


@app.command(name="try", context_settings={"ignore_unknown_options": True})
def try_(
    script: Annotated[Path, typer.Argument(help="Python file that uses Nowcast or an adapter.", exists=True, dir_okay=False)],
    arguments: Annotated[list[str] | None, typer.Argument(help="Arguments of the script.", show_default=False)] = None,
    *,
    seed: Annotated[int, typer.Option(help="Seed of both runs.", min=0, max=2**32 - 1)] = 0,
) -> None:
    """Run SCRIPT twice, without and with nowcasts, and print the steps and time saved. It must call nowcast.observe(loss)."""
    from trainer_worker.trying import report, run

    typer.echo("\n".join(report(*run(script, arguments or [], seed=seed))))


@app.command()
def keys() -> None:
    """Show every key of a configuration, its default, and what it means."""
    from rich.console import Console

    from trainer_worker.training.config import show_keys

    show_keys(Console())


def _run(config: "Config", *, compared: bool, resume: bool, fresh: bool) -> None:
    from rich.console import Console

    unfinished = _unfinished(config)  # where checkpoints cannot go is told now, not after hours
    if unfinished and not (resume or fresh):
        way = "resume it with --resume, start over with --fresh, or choose another --out"
        raise CommandFailed(f"{unfinished} holds an unfinished run: {way}")
    console = Console()
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # so that the server's process is stopped as well
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        config.output.folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=config.output.folder).close()
    except OSError as error:
        why = error.strerror or error
        raise CommandFailed(f"cannot write to the results folder {config.output.folder}: {why}; choose another --out") from error
    with console.status("starting"):
        from trainer_worker.comparison import report
        from trainer_worker.comparison.compare import compare
        from trainer_worker.training.storage import put
    summary = compare(config, console=console, resume=resume, plain=compared)
    paths = report.write(summary)
    report.show(summary, console)
    console.print("\n".join(f"wrote {path}" for path in paths), soft_wrap=True)
    if config.output.storage:
        put(config.output.storage, paths)
        console.print(f"copied them to {config.output.storage}", soft_wrap=True)


def _unfinished(config: "Config") -> str | None:
    """The checkpoints that a fresh start would delete."""
    from trainer_worker.training.storage import folders

    there = folders(config.output.place)
    done = {path.stem for path in (config.output.folder / "runs").glob("*.json")}
    return next((f"{config.output.place}/{run}" for run in there if run not in done), None)


def main() -> None:
    command.run(app, name="nowcast")
