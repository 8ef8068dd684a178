"""Do nowcasts save steps? Adam with and without them, against weight averaging and rate decay, each at its best rate.

    python bench/accelerate.py run --problem diamonds --arm adam --arm nino --seed 1 --seed 2
    python bench/accelerate.py report

Every run is one JSON file below --out; what is there is not run again, so the benchmark can be stopped and continued. Arms:
`adam` (its EMA is judged along with it), Adam under a schedule of the learning rate (`decay`: falling linearly to zero over the
whole run; `cosine`: along half a cosine; `wsd`: rising for 2% of the run, constant, and falling linearly in the last fifth),
and any forecaster: `linear`, `average`, `wnn`, `nino`, or the path of a checkpoint. A nowcast arm's EMA is judged too; it
follows jumps, and for an interval after one has a short memory. After a `+` come a nowcast arm's extras, any number of them:
`guard` tries jumps with a probe of some 1,000 training examples, which it does not train on (validation data decide over steps
to a target, and the probe never sees them), `hasty` with it judges them after one interval instead of two; `spare`, for `adam`
and the schedules as well, leaves these examples out too, so that runs can be compared; `best` tries two horizons each time, the
schedule's and half of it; `early` makes the schedule's jumps in the first 70% of the run; `near` jumps 4 intervals every time,
as suits `linear`; `grown` makes all of the growth of weights that is forecast, as the paper does, `half` half of it; a
schedule's name has the rate follow it, horizons being shortened accordingly; `reset` clears the optimizer's moments at jumps;
`recalibrate` takes batch normalisation's statistics anew over as many training examples. A decayed run that is to end earlier
is a run of its own: `--portion 0.75`.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

# instead of this folder: transformers would take this file for the package accelerate
sys.path[0] = str(Path(__file__).parent / "acceleration")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

OUT = Path("runs/accelerate")
SCHEDULES: dict[str, Callable[[float], float]] = {
    "decay": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "wsd": lambda done: min(1.0, (done + 0.0001) / 0.02, (1 - done) / 0.2),
}
"""Of the learning rate, as a share of its highest, after a share of the run."""
PLAIN = ("adam", *SCHEDULES)
EXTRAS = {"guard", "hasty", "best", "early", "near", "grown", "half", "spare", "reset", "recalibrate", *SCHEDULES}


@app.command()
def run(  # noqa: PLR0917 -- typer passes every option by name
    problem: Annotated[list[str], typer.Option(help="Of acceleration/problems.py.")],
    arm: Annotated[list[str], typer.Option(help="See above.")],
    seed: Annotated[list[int], typer.Option()],
    rate: Annotated[list[float] | None, typer.Option(help="Learning rates.", show_default="the problem's")] = None,
    portion: Annotated[float, typer.Option(help="Of the problem's steps, to which the schedules are fitted.")] = 1.0,
    out: Annotated[Path, typer.Option()] = OUT,
    threads: Annotated[int, typer.Option()] = 1,
    every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 100,
    interval: Annotated[int | None, typer.Option(help="Steps between snapshots.", show_default="a fiftieth of the run")] = None,
) -> None:
    """Make the runs that are missing."""
    import torch
    from problems import load_problem

    torch.set_num_threads(threads)
    for which in arm:
        forecaster, extras = split(which)
        if extras - EXTRAS or (extras - {"spare"} and forecaster in PLAIN):
            detail = f"{which}: forecasters take extras, of {', '.join(sorted(EXTRAS))}, and other arms spare alone"
            raise typer.BadParameter(detail, param_hint="--arm")
    for name in problem:
        loaded = load_problem(name)
        steps = round(loaded.steps * portion)
        # the first nowcast is due after a tenth of the run, as in the paper
        settings = {"steps": steps, "every": every, "interval": interval or max(1, steps // 50)}
        for one, lr, which in product(seed, rate or loaded.rates, arm):
            path = out / name / f"{label(which)}-{lr:g}-{steps}-{one}.json"
            if not path.exists():
                _keep(path, train(loaded, which, lr=lr, seed=one, **settings))


def split(arm: str) -> tuple[str, set[str]]:
    """A forecaster and its extras, of `nino+guard`."""
    forecaster, *extras = arm.split("+")
    return forecaster, set(extras)


def schedule(arm: str) -> Callable[[float], float] | None:
    """What the arm's rate follows; None if it is constant."""
    return next((SCHEDULES[name] for name in arm.split("+") if name in SCHEDULES), None)


def label(arm: str) -> str:
    """An arm's name in files and tables."""
    forecaster, extras = split(arm)
    return "+".join([Path(forecaster).stem, *sorted(extras)])


def train(problem: Any, arm: str, *, lr: float, seed: int, steps: int, every: int, interval: int) -> dict[str, Any]:
    """One run: its validation curve (step; loss, averaged; share of right answers, averaged), its jumps, its final test results."""
    import torch

    from trainer_worker import WeightAverage

    torch.manual_seed(seed)
    model = problem.build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=problem.weight_decay)
    course = schedule(arm)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: course(step / steps)) if course else None
    averaged = WeightAverage(model, decay=problem.ema, spell=interval)
    about_run = {"averaged": averaged, "scheduler": scheduler, "steps": steps, "interval": interval}
    nowcast = None if split(arm)[0] in PLAIN else _nowcast(problem, model, optimizer, arm, **about_run)
    spare = bool({"guard", "best", "spare"} & split(arm)[1])
    curve, started, spent = [], time.monotonic(), 0.0
    for step in range(1, steps + 1):
        problem.step(model, problem.batch(seed, step - 1, spare=spare))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad()
        averaged.update_parameters(model)
        if step % every == 0:
            paused = time.monotonic()
            (loss, right), (smooth, smooth_right) = (problem.judge(each, problem.validation) for each in (model, averaged))
            curve.append((step, loss, smooth, right, smooth_right))
            spent += time.monotonic() - paused
    about = {"problem": problem.name, "arm": label(arm), "lr": lr, "seed": seed, "steps": steps}
    result: dict[str, Any] = {**about, "train_s": time.monotonic() - started - spent, "curve": curve}
    result["test"], result["test_right"] = zip(*(problem.judge(each, problem.test) for each in (model, averaged)), strict=True)
    if nowcast is not None:
        nowcast.__exit__(None, None, None)
        result["events"] = [event.to_dict() for event in nowcast.events]
    return result


def _nowcast(
    problem: Any, model: Any, optimizer: Any, arm: str, *, averaged: Any, scheduler: Any, steps: int, interval: int
) -> Any:
    from trainer_worker import BestAfterRecovery, FixedHorizon, Guard, Jump, Nowcast, PaperSchedule

    forecaster, extras = split(arm)

    def probe() -> float:
        return float(problem.judge(model, problem.held)[0])

    def run() -> None:  # in the modes that recalibration has set
        for inputs, _ in problem.held:
            model(inputs)

    jump = Jump(
        growth=1.0 if "grown" in extras else 0.5 if "half" in extras else 0.0,
        moments="reset" if "reset" in extras else "keep",
        recalibrate=run if "recalibrate" in extras else False,
    )
    options: dict[str, Any] = {"jump": jump, "averages": (averaged,), "lr_scheduler": scheduler}
    if extras & {"guard", "best"}:
        # the schedule does not go back with the weights: it is of this loop's steps, and ends with them
        recovery = interval if "hasty" in extras else None
        options |= {"probe": probe, "guard": Guard(recovery, budget=0.3 if "best" in extras else Guard().budget)}
    if "early" in extras:
        options["policy"] = PaperSchedule(max_steps=round(0.7 * steps), period=5 * interval)
    if "near" in extras:
        options["policy"] = FixedHorizon(4)
    if "best" in extras:
        options["policy"] = BestAfterRecovery(PaperSchedule(max_steps=steps, period=5 * interval), shares=(1.0, 0.5))
    if Path(forecaster).suffix:
        from nowcast_server.nino.checkpoint import load_checkpoint

        options["checkpoint"], forecaster = forecaster, "nino" if load_checkpoint(forecaster).options.graph else "wnn"
    return Nowcast(model, optimizer, max_steps=steps, interval=interval, forecaster=forecaster, **options).__enter__()


def _keep(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(result))
    draft.replace(path)
    typer.echo(f"{path}: validation {result['curve'][-1][1]:.4f}, averaged {result['curve'][-1][2]:.4f}, {result['train_s']:.0f} s")


@app.command()
def report(  # noqa: PLR0917 -- typer passes every option by name
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = OUT,
    picture: Annotated[Path | None, typer.Option(help="PNG of the validation curves.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Arm to draw, `+ema` for its average.", show_default="all")] = None,
    save: Annotated[Path | None, typer.Option(help="JSON of the table.")] = None,
    share: Annotated[float, typer.Option(help="Of the rivals' runs: where they are then is what others have to reach.")] = 1.0,
    arm: Annotated[str, typer.Option(help="The verdict is on this one,")] = "nino+ema",
    rival: Annotated[str, typer.Option(help="against this one.")] = "adam+ema",
) -> None:
    """Print the table: steps each arm needs to be where Adam, its average and rate decay are at the end of their runs."""
    from report import draw, print_table, print_verdict, read, summarise

    rows = summarise(read(out), share=share)
    print_table(rows)
    print_verdict(rows, arm, rival=rival, without=["fm-16"])  # whose shape nino-base was fitted to
    if save:
        save.write_text(json.dumps(rows, indent=1))
    if picture:
        draw(read(out), picture, only=only or ())


if __name__ == "__main__":
    app()
