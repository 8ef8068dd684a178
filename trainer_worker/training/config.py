"""The configuration of a training job: a TOML file, read strictly, with errors that name the key and say what to do."""

import difflib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from protos.messages import Dtype, Horizon, Mode
from trainer_worker.endpoints.server import is_file, name_of
from trainer_worker.errors import CommandFailed
from trainer_worker.push import FORECASTERS, GAIN, Push
from trainer_worker.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console

Count = Annotated[int, Field(ge=1, strict=True)]
Number = Annotated[int, Field(ge=0, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True)]
Amount = Annotated[float, Field(ge=0, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Part = Annotated[float, Field(ge=0, lt=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Absolute = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""Relative to where the command runs: Ray's workers have working directories of their own."""


class Table(BaseModel):
    """Base of all tables: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskTable(Table):
    """`[task]`: what is trained."""

    name: Literal[*TASKS] = Field(description=f"one of {', '.join(TASKS)}")  # type: ignore[valid-type]  # as they are there
    data: Absolute | None = Field(default=None, description="folder that holds the data set; by default it is found or downloaded")
    examples: Count | None = Field(default=None, description="most examples in each split, for quick trials")


class TrainTable(Table):
    """`[train]`: the optimisation, without nowcasts."""

    steps: Count = Field(default=10_000, description="optimizer steps of a run")
    batch_size: Count = Field(default=128, description="examples per step, over all workers together")
    lr: Positive = Field(default=6e-3, description="learning rate of AdamW")
    weight_decay: Amount = Field(default=0.0, description="weight decay of AdamW")
    average: Part = Field(default=0.0, description="decay of an EMA of the weights, evaluated in their place, e.g. 0.998; 0: none")
    seeds: list[Seed] = Field(default=[1000], min_length=1, description="one run for each; it sets weights, batches and dropout")
    eval_every: Count = Field(default=200, description="steps between two evaluations on validation and test data")
    checkpoint_every: Count = Field(default=1000, description="steps between two checkpoints")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds must differ")
        return seeds


class NowcastTable(Table):
    """`[nowcast]`: where forecasts come from, and how they push."""

    server: str = Field(default="own", description="`own`: start one; `embedded`: forecast in the worker; or the URL of a server")
    forecaster: str = Field(
        default="",
        description="spectral, linear, nino, wnn, average, last; a checkpoint's name at the server; or, for an own or embedded "
        "server, a file of weights; by default spectral, linear if shadow, nino if jump",
    )
    interval: Count | None = Field(default=None, description="in steps; by default 1/200 of the run, at least 8; 1/50 if jump")
    mode: Mode = Field(
        default="glide",
        description="glide: forecasts push the weights while training goes on; jump: the published method, predicted weights are "
        "loaded at once; shadow: forecasts are made and scored, and never used",
    )
    gain: Part = Field(default=GAIN, description="share of the movement seen that a push adds")
    start: Share = Field(default=Push.start, description="share of the run after which pushes begin")
    fade: Share = Field(default=Push.fade, description="share of the run after which the gain falls, to 0 at the end")
    hold_norms: bool = Field(default=Push.hold_norms, description="keep the norms of weight matrices: turn, do not enlarge them")
    horizon: Horizon | None = Field(
        default=None, description="intervals to forecast ahead; by default as suits the forecaster; jump has the paper's"
    )
    dtype: Dtype = Field(default="float32", description="precision in which snapshots are sent")
    timeout_s: Positive = Field(default=30.0, description="longest time for a call to the server, in seconds")
    record: bool = Field(default=False, description="allow a server that records to keep the snapshots, to fit forecasters to them")

    @field_validator("server")
    @classmethod
    def _server(cls, server: str) -> str:
        if server not in ("own", "embedded") and not server.startswith(("http://", "https://")):
            raise ValueError("must be own, embedded, or an address that starts with http:// or https://")
        return server

    @model_validator(mode="before")
    @classmethod
    def _forecaster(cls, given: Any) -> Any:
        """By default the one that does best in the mode; a file as its absolute path."""
        if not isinstance(given, dict):
            return given
        named = given.get("forecaster") or FORECASTERS.get(given.get("mode", "glide"), "")
        return {**given, "forecaster": str(Path(named).expanduser().absolute()) if is_file(str(named)) else named}

    @model_validator(mode="after")
    def _whose_weights(self) -> Self:
        if is_file(self.forecaster) and self.server not in ("own", "embedded"):
            raise ValueError("a file of weights is for the own or embedded server; the one at a URL has its own weights")
        if is_file(self.forecaster) and not Path(self.forecaster).is_file():
            raise ValueError(f"forecaster: there is no file {self.forecaster}")
        return self

    @property
    def name(self) -> str:
        """The forecaster's, at a server and in the names of runs."""
        return name_of(self.forecaster)

    @property
    def push(self) -> Push:
        """The table's keys that say how forecasts push."""
        return Push(self.gain, self.start, self.fade, hold_norms=self.hold_norms, horizon=self.horizon)


class WorkersTable(Table):
    """`[workers]`: the data-parallel processes of the Ray job."""

    count: Number = Field(default=2, description="worker processes; 0 trains in this one, without Ray, on a GPU if there is one")
    gpus_per_worker: Amount = Field(default=0, description="GPUs of each worker; 0 trains on CPUs")
    threads: Count | None = Field(default=None, description="torch threads of each worker; by default its share of the cores")
    max_failures: Number = Field(default=3, description="restarts from the latest checkpoint before giving up")
    address: str | None = Field(default=None, description="of a running Ray cluster, HEAD:6379 or auto; by default one starts here")

    @field_validator("address")
    @classmethod
    def _address(cls, address: str | None) -> str | None:
        if address and address.startswith(("http://", "https://")):
            raise ValueError("is where jobs are submitted: give HEAD:6379, or submit it and give auto")
        return address


class OutputTable(Table):
    """`[output]`: where results go."""

    folder: Absolute = Field(default=Path("runs/job"), description="for summary.json, report.png, report.html and checkpoints")
    storage: str | None = Field(
        default=None, description="for checkpoints instead, and results too: a shared path, s3://, gs://, …"
    )

    @property
    def place(self) -> str:
        """Where checkpoints go, one folder for each run."""
        path, mark, query = (self.storage or "").partition("?")  # which says a store's region or endpoint
        return f"{str(path or self.folder).rstrip('/')}/checkpoints{mark}{query}"  # a store takes no // within a path


class Config(Table):
    """A whole job. Only `[task]` must be given."""

    task: TaskTable
    train: TrainTable = TrainTable()
    nowcast: NowcastTable | None = None
    workers: WorkersTable = WorkersTable()
    output: OutputTable = OutputTable()

    @property
    def arm(self) -> str:
        """One side of a comparison: the job without nowcasts, or with those of one forecaster."""
        return f"adam+{self.nowcast.name}" if self.nowcast else "adam"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.workers.count and self.train.batch_size % self.workers.count:
            raise ValueError(f"train.batch_size {self.train.batch_size} does not split evenly over {self.workers.count} workers")
        if not self.workers.count and self.output.storage:
            raise ValueError("output.storage: a run in this process (workers.count = 0) keeps its checkpoints in output.folder")
        if self.workers.address and self.nowcast and self.nowcast.server == "own":
            raise ValueError("nowcast.server: workers of another cluster cannot reach a server of this command's own; give its URL")
        return self


_TABLES: Final = (TaskTable, TrainTable, NowcastTable, WorkersTable, OutputTable)
TABLES: Final[dict[str, type[Table]]] = dict(zip(Config.model_fields, _TABLES, strict=True))


def load_config(path: Path, *, overrides: dict[str, Any] | None = None, compared: bool = False) -> Config:
    """Read and check a configuration. `overrides`, by `table.key`, replace values of the file; None is no override.
    With `compared`, nowcasts are made even if the file has no table of them.

    Raises CommandFailed: the file cannot be read, is not TOML, or has wrong keys or values.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors begin a file with a byte order mark
        data: dict[str, Any] = tomllib.loads(text)
        for place, value in (overrides or {}).items():
            table, key = place.split(".")
            if value is not None and isinstance(data.setdefault(table, {}), dict):
                data[table][key] = value
        return Config.model_validate(({"nowcast": {}} if compared else {}) | data)
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise CommandFailed("\n".join(f"{path}: {_explain(mistake)}" for mistake in error.errors())) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{path}: not valid TOML: {error}") from None


def _explain(mistake: Any) -> str:
    said: str = mistake["msg"].removeprefix("Value error, ")
    table, key, *_ = [*map(str, mistake["loc"]), "", ""]
    if mistake["type"] == "extra_forbidden":
        unknown, known = (f"[{table}] {key}: unknown key", TABLES[table]) if key else (f"unknown table [{table}]", Config)
        return unknown + _nearest(key or table, known.model_fields)
    if mistake["type"] == "missing" and not key:
        return f"the table [{table}] is missing"
    where = f"[{table}] {key}".strip() + ": " if table else ""
    shown = f" (it is {mistake['input']!r})" if key and not isinstance(mistake["input"], dict) else ""
    return where + said + shown


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f" (known: {', '.join(known)})"


def show_keys(console: "Console") -> None:
    """Print every key of a configuration, its default, and what it means: a table for each of the configuration's tables."""
    from rich.markup import escape
    from rich.table import Table as Shown

    for name, table in TABLES.items():
        shown = Shown("key", "default", "meaning", title=escape(f"[{name}]"), title_justify="left")
        for key, field in table.model_fields.items():
            shown.add_row(key, escape(default_of(field)), escape(field.description or ""))
        console.print(shown)


def default_of(field: FieldInfo) -> str:
    """The default of a key, as text."""
    return "must be given" if field.is_required() else "" if field.default is None else str(field.default)
