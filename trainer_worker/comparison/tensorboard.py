"""A comparison's curves as TensorBoard events."""

import shutil
from pathlib import Path

from tensorboardX import SummaryWriter

from trainer_worker.comparison.summary import Summary


def write_events(summary: Summary, folder: Path) -> None:
    """Write losses, accuracies and nowcasts of every run, each into a folder of its own; what was there is replaced.

    TensorBoard's relative time is seconds of training.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for run in summary.runs:
        with SummaryWriter(str(folder / f"{run.arm}-seed{run.seed}")) as events:
            for each in run.evaluations:
                at = {"global_step": each.step, "walltime": each.train_s}
                events.add_scalar("loss/train", each.train_loss, **at)
                for split in ("validation", "test"):
                    score = getattr(each, split)
                    events.add_scalar(f"loss/{split}", score.loss, **at)
                    events.add_scalar(f"accuracy/{split}", score.accuracy, **at)
            for event in run.events:
                if event["kind"] == "nowcast":
                    events.add_scalar("nowcast/used", float(event["outcome"] in {"glided", "jumped"}), event["step"])
