"""Fitting a forecaster to trajectories. It can be stopped at any step; a resumed fit is equal bit for bit."""

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from nowcast_server.nino.checkpoint import Checkpoint, ModelOptions, load_checkpoint, save_checkpoint
from nowcast_server.trajectories.store import Trajectory, trajectories
from trainer_worker.metatrain.library import Group, Library
from trainer_worker.metatrain.loss import loss, predict
from trainer_worker.metatrain.model import NiNo, Wnn
from trainer_worker.metatrain.progress import Progress
from trainer_worker.metatrain.skill import RIVALS, of_model, skill
from trainer_worker.metatrain.windows import Windows, draw_cuts, draw_horizons, read_windows

logger = logging.getLogger(__name__)

MOST_SKIPPED = 50
"""So many steps in a row without a finite gradient end a fit."""

MOST_NAMED = 20
"""Of new trajectories."""

OTHER_KINDS = 0.25
TYPE_STD = 0.5
WARMUP = 50
"""Steps in which the rate rises to its full height."""


class FitConfig(BaseModel):
    """A fit.

    Args:
        trajectories: folder of the store.
        out: folder of the fit: its state, its log, the finished checkpoint.
        name: of the forecaster.
        start: checkpoint to begin with: an earlier fit's, or the shipped one, to fit it to recordings of your own. Random by
            default.
        keep: share of `start` in the weights that are kept at the end; the rest are the fit's. Between the two often lies what is
            better than either on networks that neither saw (Wortsman et al. 2022).
        model: the graph network or the MLP.
        hidden: width.
        steps: optimisation steps.
        lr, weight_decay, clip: of AdamW; the rate falls to 1e-6 along a cosine.
        groups: networks a step looks at.
        edges: a step takes as many windows of a network as have together so many edges, at most `windows`.
        windows: of a network, at most.
        kinds: how often each kind of network is drawn; others, as servers record them, `OTHER_KINDS`.
        words: of a larger vocabulary, so many rows are drawn.
        averaged: share of windows whose context is averaged over its intervals.
        evenness: see `loss`.
        ema: decay of the averaged weights, which are what is kept.
        without: tasks to leave out, by the start of their names.
        held: tasks that only judge, by the start of their names; of recordings, `recorded/TENANT/` and the start of a job's id.
        validate_every: steps between two looks at the validation runs.
        save_every: steps between two saved states.
        seed: of initial weights and of every draw.
        threads: of torch. The result is the same to the bit for the same number only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trajectories: Path
    out: Path
    name: str
    start: Path | None = None
    keep: float = Field(0.0, ge=0, le=1)
    model: Literal["nino", "wnn"] = "nino"
    hidden: int = Field(64, ge=1)
    steps: int = Field(6000, ge=1)
    lr: float = 3e-3
    weight_decay: float = 1e-2
    clip: float = 5.0
    groups: int = Field(3, ge=1)
    edges: int = Field(16_000, ge=1)
    windows: int = Field(16, ge=1)
    kinds: dict[str, float] = {"convnet": 0.5, "gpt": 0.25, "mlp": 0.25}
    words: int = Field(96, ge=1)
    averaged: float = Field(0.1, ge=0, le=1)
    evenness: float = Field(0.5, ge=0, le=1)
    ema: float = Field(0.998, ge=0, lt=1)
    without: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    validate_every: int = Field(500, ge=1)
    save_every: int = Field(100, ge=1)
    seed: int = 0
    threads: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _has_start(self) -> Self:
        if self.keep and self.start is None:
            raise ValueError("keep needs start: it is the share of its weights that is kept")
        return self

    def options(self) -> ModelOptions:
        """Of the model to fit."""
        return ModelOptions(graph=self.model == "nino", hidden=self.hidden)

    def terms(self) -> dict[str, Any]:
        """What a fit's weights depend on besides its trajectories, as JSON values."""
        free = {"trajectories", "out", "name", "keep", "validate_every", "save_every", "threads"}
        return self.model_dump(mode="json", exclude=free)


@dataclass(slots=True)
class _State:
    """Everything a fit needs to go on: saved whole, restored whole.

    Args:
        terms: the settings that it began with.
        runs: the trajectories it draws from, by their paths in the store, and how many snapshots each had when the fit began.
    """

    terms: dict[str, Any]
    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.AdamW
    step: int = 0
    skipped: int = 0
    runs: dict[str, int] = field(default_factory=dict)

    @classmethod
    def fresh(cls, config: FitConfig) -> "_State":
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            model = build(config.options())
        if config.start is not None:
            model.load_state_dict(dict(_start(config.start, config.options()).tensors))
        average = build(config.options())
        average.load_state_dict(model.state_dict())
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        return cls(config.terms(), model, average.requires_grad_(False), optimizer)

    def save(self, path: Path) -> None:
        draft = path.with_suffix(".draft")
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        torch.save({**parts, "step": self.step, "skipped": self.skipped, "runs": self.runs, "terms": self.terms}, draft)
        draft.replace(path)

    def load(self, path: Path) -> None:
        content = torch.load(path, weights_only=True)
        begun = content.get("terms", {})  # earlier versions kept none
        changed = [f"{name} = {begun[name]}, not {value}" for name, value in self.terms.items() if begun.get(name, value) != value]
        if changed:
            ways = "use that again, or start again in another folder (out)"
            raise ValueError(f"{path.parent} holds a fit that was started with {', '.join(changed)}: {ways}")
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(content[name])
        self.step, self.skipped = content["step"], content["skipped"]
        self.runs = content.get("runs", {})  # earlier versions kept none


def _start(path: Path, options: ModelOptions) -> Checkpoint:
    found = load_checkpoint(path)
    for name, value in asdict(options).items():
        if (theirs := getattr(found.options, name)) != value:
            raise ValueError(
                f"start: {path} has {name} = {theirs}, this fit {value}: only a model of the same shape can be continued"
            )
    return found


def build(options: ModelOptions) -> nn.Module:
    """A model to begin a fit with: it forecasts little change, and passes on signals of unit size.

    The paper's N(0, 0.02^2) needs thousands of steps until ten such layers pass on anything.
    """
    model = NiNo(options) if options.graph else Wnn(options)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=TYPE_STD)
    last = (model.edge_out if isinstance(model, NiNo) else model.horizons_out)[-1]
    nn.init.normal_(cast("nn.Linear", last).weight, std=0.1 * options.hidden**-0.5)
    return model


def fit(config: FitConfig) -> Path:
    """Fit from the start or from the last saved state to the end; returns the checkpoint.

    Raises:
        ValueError: the store has no runs to fit to, or no longer those that the fit began with, or the fit began with other
            settings, or `start` is a model of another shape.
        CheckpointError: `start` is no checkpoint.
        FloatingPointError: the loss has stopped being finite.
    """
    torch.set_num_threads(config.threads)
    state, saved = _State.fresh(config), config.out / "state.pt"
    if saved.exists():
        state.load(saved)
    library = Library.of(_runs(config, state), without=config.without, held=config.held)
    if not library.training:
        raise ValueError(f"{config.trajectories} holds no training runs: `nowcast metatrain collect` makes some")
    config.out.mkdir(parents=True, exist_ok=True)
    with Progress(config.out, about=json.loads(config.model_dump_json())) as progress:
        while state.step < config.steps:
            _advance(state, config, library, progress)
            if state.step % config.save_every == 0 or state.step == config.steps:
                state.save(saved)
            if state.step % config.validate_every == 0 or state.step == config.steps:
                _validate(state, library, progress)
    path = config.out / f"{config.name}.safetensors"
    save_checkpoint(Checkpoint(config.options(), _kept(config, state.average), config.name, _note(config, library)), path)
    return path


def _runs(config: FitConfig, state: _State) -> list[Trajectory]:
    """What the store held when the fit began, to the snapshot: what has come since would change every draw that is left."""
    found = {str(run.path.relative_to(config.trajectories)): run for run in trajectories(config.trajectories)}
    if not state.runs:
        state.runs = {name: len(run.steps) for name, run in found.items()}
    for name, count in state.runs.items():
        if name not in found or len(found[name].steps) < count:
            raise ValueError(
                f"{config.out} holds a fit to {config.trajectories / name}, which is missing or damaged: restore it, "
                "or start again in another folder (out)"
            )
    if new := [name for name in found if name not in state.runs]:
        named = ", ".join(new[:MOST_NAMED]) + (", ..." if len(new) > MOST_NAMED else "")
        logger.info("%d trajectories were added since the fit began, and are ignored until the next one: %s", len(new), named)
    return [found[name].first(count) for name, count in state.runs.items()]


def _advance(state: _State, config: FitConfig, library: Library, progress: Progress) -> None:
    started = time.monotonic()
    rate = 1e-6 + (config.lr - 1e-6) * (1 + math.cos(math.pi * state.step / config.steps)) / 2
    rate *= min(1.0, (state.step + 1) / WARMUP)
    state.optimizer.param_groups[0]["lr"] = rate
    state.optimizer.zero_grad()
    total = 0.0
    for windows, signs in draw_batch(config, library, state.step):
        # one network after the other, so that a step needs the memory of one
        part = loss(predict(state.model, windows, signs=signs), windows, evenness=config.evenness) / config.groups
        part.backward()  # type: ignore[no-untyped-call]
        total += float(part.detach())
    norm = float(nn.utils.clip_grad_norm_(state.model.parameters(), config.clip))
    if math.isfinite(norm) and math.isfinite(total):
        state.optimizer.step()
        _average(state, config)
        state.skipped = 0
    else:
        state.skipped += 1
        logger.warning("step %d: loss %f, gradient %f: left out", state.step, total, norm)
        if state.skipped > MOST_SKIPPED:
            raise FloatingPointError(f"no finite gradient in {MOST_SKIPPED} steps up to {state.step}")
    state.step += 1
    progress.step(state.step, {"loss": total, "gradient": norm, "lr": rate, "seconds": time.monotonic() - started})


@torch.no_grad()
def _average(state: _State, config: FitConfig) -> None:
    decay = min(config.ema, (1 + state.step) / (10 + state.step))
    for held, new in zip(state.average.parameters(), state.model.parameters(), strict=True):
        held.lerp_(new, 1 - decay)


def draw_batch(config: FitConfig, library: Library, step: int) -> Iterator[tuple[Windows, Tensor]]:
    """The windows of a step and the signs of their Laplacian features: a function of seed, step and what the fit began with."""
    rng = np.random.Generator(np.random.PCG64([config.seed, step]))
    kinds = sorted({group.kind for group in library.training})
    weights = np.array([config.kinds.get(kind, OTHER_KINDS) for kind in kinds])
    for _ in range(config.groups):
        kind = rng.choice(kinds, p=weights / weights.sum())
        among = [group for group in library.training if group.kind == kind]
        yield _draw_windows(rng, config, among[rng.integers(len(among))])


def _draw_windows(rng: np.random.Generator, config: FitConfig, group: Group) -> tuple[Windows, Tensor]:
    words = None
    if group.design is not None and group.kind == "gpt" and group.design.inputs > config.words:
        words = torch.from_numpy(np.sort(rng.permutation(group.design.inputs)[: config.words]))
    count = int(np.clip(config.edges // group.wiring.edges, 1, config.windows))
    options = config.options()
    cuts = draw_cuts(rng, group, count=count, context=options.context, averaged=config.averaged)
    windows = read_windows(group, cuts, draw_horizons(rng), context=options.context, words=words)
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=(count, options.laplacian)).astype(np.float32))
    return windows, signs


def _validate(state: _State, library: Library, progress: Progress) -> None:
    found = skill(library.validation, {**RIVALS, "model": of_model(state.average)})
    progress.skill(state.step, found)
    for name, scopes in found.items():
        logger.info("step %d: skill of %s: %s", state.step, name, scopes)


def _kept(config: FitConfig, model: nn.Module) -> dict[str, Tensor]:
    fitted = {name: cast("Tensor", tensor).detach().clone() for name, tensor in model.state_dict().items()}
    if config.start is None or not config.keep:
        return fitted
    start = _start(config.start, config.options()).tensors
    return {name: tensor.lerp(start[name], config.keep) for name, tensor in fitted.items()}


def _note(config: FitConfig, library: Library) -> str:
    runs = sum(len(group.runs) for group in library.training)
    after = f" after {load_checkpoint(config.start).note or config.start.name}" if config.start else ""
    return f"fitted by nowcast to {runs} runs of {len(library.training)} networks, {config.steps} steps, seed {config.seed}{after}"
