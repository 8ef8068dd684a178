"""What a training run is ordered with and leaves behind, as JSON-able values, and with what it may be resumed."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from protos.messages import Skill
from trainer_worker.errors import BadArgument
from trainer_worker.training.config import Config
from trainer_worker.training.storage import forget


class Record(BaseModel):
    """Base: frozen. In JSON a loss that is no number is the string "NaN", which can be read back."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class Order(Record):
    """Everything a worker needs to know to train one run."""

    config: Config  # of the job; the plain arm of a comparison has it without the table of nowcasts
    seed: int  # of weights, batches and dropout
    job: str  # the run's id on the nowcast server
    server: str | None = None  # its address; None for embedded forecasts or none at all
    token: str | None = Field(default=None, repr=False)  # for a server that asks for one

    @property
    def name(self) -> str:
        """As folder name and in progress lines."""
        return f"{self.config.arm}-seed{self.seed}"

    @property
    def file(self) -> Path:
        """Where the record of the finished run is kept."""
        return self.config.output.folder / "runs" / f"{self.name}.json"

    @property
    def terms(self) -> dict[str, Any]:
        """What the run's weights and curves depend on, by key of the configuration, but for what is in its name."""
        config, table = self.config, self.config.nowcast
        tables: dict[str, dict[str, Any]] = {
            "task": config.task.model_dump(mode="json", exclude={"data"}),
            "train": config.train.model_dump(mode="json", exclude={"seeds", "checkpoint_every"}),
            "nowcast": table.model_dump(mode="json", exclude={"server", "timeout_s", "record"}) if table else {},
            "workers": {"count": config.workers.count},
        }
        return {f"{name}.{key}": value for name, values in tables.items() for key, value in values.items()}

    def check(self, begun: dict[str, Any]) -> None:
        """See that a run was begun with these terms; more steps are no other ones. Raises `BadArgument`: it was not."""
        changed = [(key, begun.get(key, value), value) for key, value in self.terms.items()]  # there may be keys that were not yet
        different = [
            f"{key} = {was}, not {value}" for key, was, value in changed if was != value and (key != "train.steps" or was > value)
        ]
        if different:
            ways = "use that again, start over with --fresh, or choose another --out (of a submitted job: another --name)"
            raise BadArgument("--resume", f"{self.name} was started with {', '.join(different)}: {ways}")


class Score(Record):
    """Mean loss and accuracy over a split."""

    loss: float
    accuracy: float


class Evaluation(Record):
    """The network at one step, or the average of its weights; over the whole splits."""

    step: int  # optimizer steps done
    train_loss: float  # mean over the batches since the last evaluation
    validation: Score
    test: Score
    train_s: float  # seconds of training up to here, evaluations and checkpoints not counted


class RunRecord(Record):
    """One finished run."""

    arm: str
    seed: int
    terms: dict[str, Any]  # of its order
    parameters: int  # weights of the network
    restores: int  # how often it went on from a checkpoint, after a failure or a stop
    evaluations: list[Evaluation]  # oldest first, restarts included
    events: list[dict[str, Any]]  # what became of nowcasts, as JSON values
    nowcast: dict[str, Any] | None  # `Nowcast.summary()`; None without nowcasts
    wall_s: float = 0.0  # seconds from the order to the end, as its caller saw them

    @property
    def step_s(self) -> float:
        """Median over the stretches between evaluations of their seconds a step."""
        ends = [(0, 0.0), *((evaluation.step, evaluation.train_s) for evaluation in self.evaluations)]
        return median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(ends))

    @property
    def outcomes(self) -> dict[str, int]:
        """How many nowcasts glided, jumped, were scored only, or skipped."""
        return dict(Counter(event["outcome"] for event in self._nowcasts))

    @property
    def reasons(self) -> dict[str, int]:
        """How often each reason was given for a nowcast that was skipped."""
        return dict(Counter(event["reason"] for event in self._nowcasts if event["outcome"] == "skipped"))

    @property
    def skill(self) -> Skill:
        """What forecasts were worth, of those whose future came."""
        skill: Skill = (self.nowcast or {}).get("skill", {})
        return skill

    @property
    def _nowcasts(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == "nowcast"]


def begin(orders: Sequence[Order], *, resume: bool) -> None:
    """Make ready for the runs: without `resume` everything there is of them is deleted, all before the first; with it, finished
    ones are checked. Raises BadArgument: see `Order.check`; CommandFailed: see `storage`.
    """
    kept = [finished(order) if resume else None for order in orders]
    for order, record in zip(orders, kept, strict=True):
        if not resume:
            forget(order.config.output.place, order.name)
        if record is None:
            order.file.unlink(missing_ok=True)


def finished(order: Order) -> RunRecord | None:
    """The record kept of a run; None if it cannot be read, or has another length. For errors see `Order.check`."""
    try:
        record = RunRecord.model_validate_json(order.file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    order.check(record.terms)
    return record if record.evaluations[-1].step == order.config.train.steps else None


def keep(order: Order, record: RunRecord) -> None:
    order.file.parent.mkdir(parents=True, exist_ok=True)  # Ray may have unpacked a job's working directory anew meanwhile
    order.file.write_text(record.model_dump_json(), encoding="utf-8")
