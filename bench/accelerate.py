"""Does gliding save steps? Adam with and without it, against averages, falling rates and rivals, each at its best rate.

    python bench/accelerate.py run --problem diamonds --arm adam --arm nino --arm ademamix:alpha=5 --seed 1 --seed 2
    python bench/accelerate.py report --out runs/accelerate

Every run is one JSON file below --out. A run that is there is not made again, so the benchmark can be stopped and continued.
Without --out, `report` tells of the runs that are kept with the project, in acceleration/results. An arm is a name, settings after
a colon, and extras after a plus: `linear:gain=0.5+cosine`.

- `adam`, and Adam under a schedule of the learning rate: `decay` (along a line to zero), `cosine`, `wsd` (2% warm-up, constant, a
  fifth of decay). A decayed run that is to end earlier is a run of its own: `--portion 0.75`.
- Rivals without a forecaster, with the settings of acceleration/rivals.py: `ademamix:alpha=5,beta3=0.999`,
  `ema-nesterov:beta=0.6,gamma=0.99,start=0.1,end=0.6`, `snoo:every=50,mu=0.6,eta=1`, `muon`. They need `pip install --group bench`.
- A forecaster, gliding: `spectral`, `linear`, `average`, `wnn`, `nino`, or the path of a checkpoint. Its settings are arguments of
  `Nowcast`.
  Extras: `jump` for the published method instead, a schedule's name, or `ademamix` or `muon` in place of AdamW, with settings of
  their own: `linear+ademamix:alpha=3`.

The exponential moving average of every arm's weights is judged along with them, as `ARM+ema`.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

# instead of this folder: transformers would take this file for the package accelerate
sys.path[0] = str(Path(__file__).parent / "acceleration")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

OUT = Path("runs/accelerate")


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
) -> None:
    """Make the runs that are missing."""
    import torch
    from arms import Arm
    from problems import load_problem

    torch.set_num_threads(threads)
    arms = [Arm.read(each) for each in arm]
    for name in problem:
        loaded = load_problem(name)
        steps = round(loaded.steps * portion)
        for one, lr, which in product(seed, rate or loaded.rates, arms):
            label = which.label.replace(":", "_")  # which Windows takes for something else
            path = out / name / f"{label}-{lr:g}-{steps}-{one}.json"
            if not path.exists():
                _keep(path, train(loaded, which, lr=lr, seed=one, steps=steps, every=every))


def train(problem: Any, arm: Any, *, lr: float, seed: int, steps: int, every: int) -> dict[str, Any]:
    """One run: its validation curve (step; loss, averaged; share of right answers, averaged), its nowcasts, its test results."""
    import torch

    torch.manual_seed(seed)
    model = problem.build().train()
    optimizers = arm.optimizers(model, lr=lr, weight_decay=problem.weight_decay, steps=steps)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(each, partial(_share, arm.schedule, steps)) for each in optimizers]
    wrapper = arm.wrapper(optimizers[-1])
    averaged = average(model, problem.ema)
    curve, started, spent = [], time.monotonic(), 0.0
    with arm.nowcast(model, optimizers, steps=steps) as nowcast:
        for step in range(1, steps + 1):
            if wrapper:
                wrapper.before_step((step - 1) / steps)
            problem.step(model, problem.batch(seed, step - 1))
            for each in (*optimizers, *schedulers):
                each.step()
            if wrapper:
                wrapper.after_step()
            model.zero_grad()
            averaged.update_parameters(model)
            if step % every == 0:
                paused = time.monotonic()
                (loss, right), (smooth, smooth_right) = (problem.judge(each, problem.validation) for each in (model, averaged))
                curve.append((step, loss, smooth, right, smooth_right))
                spent += time.monotonic() - paused
    result: dict[str, Any] = {"problem": problem.name, "arm": arm.label, "lr": lr, "seed": seed, "steps": steps, "curve": curve}
    result["train_s"] = time.monotonic() - started - spent
    result["test"], result["test_right"] = zip(*(problem.judge(each, problem.test) for each in (model, averaged)), strict=True)
    if nowcast is not None:
        result["nowcasts"] = nowcast.summary()
    return result


def _share(schedule: Callable[[float], float] | None, steps: int, step: int) -> float:
    return schedule(step / steps) if schedule else 1.0


def average(model: Any, decay: float) -> Any:
    """An exponential moving average of weights and buffers, whose memory is a quarter of the steps at first."""
    import torch
    from torch.optim.swa_utils import AveragedModel

    @torch.no_grad()
    def update(means: list[torch.Tensor], weights: list[torch.Tensor], count: torch.Tensor | int) -> None:
        if means[0].is_floating_point():  # torch groups them by type; counters are copied
            torch._foreach_lerp_(means, weights, 1 - min(decay, float(count) / (float(count) + 4)))
        else:
            torch._foreach_copy_(means, weights)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def _keep(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(result))
    draft.replace(path)
    typer.echo(f"{path}: validation {result['curve'][-1][1]:.4f}, averaged {result['curve'][-1][2]:.4f}, {result['train_s']:.0f} s")


@app.command()
def report(  # noqa: PLR0917 -- typer passes every option by name
    out: Annotated[Path | None, typer.Option(help="Folder of the runs.", show_default="acceleration/results")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG of the validation curves.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Arm to draw, `+ema` for its average.", show_default="all")] = None,
    save: Annotated[Path | None, typer.Option(help="JSON of the table.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Arm to compare, without `+ema`.", show_default="spectral, linear")] = None,
    rival: Annotated[list[str] | None, typer.Option(help="With what.", show_default="adam, strongest")] = None,
) -> None:
    """Print steps saved, averages against averages and weights against weights, then a long table with the figures of each arm."""
    from report import KEPT, compare, draw, print_comparison, print_table, read, summarise

    problems = read(out or KEPT)
    for mine, other in product(arm or ("spectral", "linear"), rival or ("adam", "strongest")):
        # the shape of fm-16 is among those that nino-base was fitted to
        print_comparison(compare(problems, mine, rival=other), mine, rival=other, without=["fm-16"])
    rows = summarise(problems)
    print_table(rows)
    if save:
        save.write_text(json.dumps(rows, indent=1))
    if picture:
        draw(problems, picture, only=only or ())


if __name__ == "__main__":
    app()
