"""The `Nowcast` context manager: two lines in anyone's training loop."""

import atexit
import logging
import os
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from protos.errors import BadWiring
from protos.messages import About, JobSpec, Mode
from protos.wiring import Wiring
from trainer_worker.boundary import Boundaries
from trainer_worker.endpoints.endpoint import Endpoint
from trainer_worker.endpoints.server import Server, connect, name_of
from trainer_worker.errors import BadArgument
from trainer_worker.events import Event, Journal, closing_line
from trainer_worker.forecasts import Forecasts
from trainer_worker.jump import Jumps
from trainer_worker.push import CONTEXT, FORECASTERS, GRAPH_FREE, Push
from trainer_worker.weights.distributed import Ranks, unwrap
from trainer_worker.weights.flat import FlatParameters
from trainer_worker.weights.optimizers import find_optimizers, gain_for
from trainer_worker.weights.pushed import PushedWeights
from trainer_worker.wiring import describe, logged

log = logging.getLogger(__name__)

STATE_VERSION: Final = 13
UNSEEDED: Final = 67280421310721  # the seed of torch's generators that nobody has seeded
_running: Final = weakref.WeakSet["Nowcast"]()


class Nowcast:
    """Push a model's weights, during training, to where a forecast sees them heading.

    ```python
    with Nowcast(model, optimizer, max_steps=10_000) as nowcast:  # server="http://…" for a shared one
        for batch in loader:  # the loop is unchanged
            loss(model, batch).backward(); optimizer.step(); optimizer.zero_grad()
    print(nowcast.summary())
    ```

    At the end of each interval the trained weights are copied, sent in the background, and a forecast is requested. The forecast
    requested one interval ago is added to the weights in equal parts, after every fourth step of the next interval. If a server or
    a forecast fails, the nowcast is skipped and counted, and training continues.

    In data-parallel training make one on every rank, with the same arguments: rank 0 talks to the server. A model that is split by
    `fully_shard` (FSDP2) needs a `wiring` that was made before the split, if the forecaster is a graph network.

    Args:
        model: the model in training; may be wrapped by `DistributedDataParallel`, `DataParallel` or `torch.compile`.
        optimizer: the optimizer that trains it, or a list in the order in which they step. The last one's steps are counted.
        max_steps: optimizer steps of the whole run; None if unknown.
        interval: steps between snapshots; None for 1/200 of the run, at least 8; in a run of unknown length it grows.
        mode: "glide"; "jump" for the published method; "shadow" to make and score forecasts without using them.
        forecaster: `spectral`, `linear`, `nino` (graph network), …, or a file of weights for forecasts in this process; None for
            `spectral`, `linear` if they are only scored, `nino` if jumping.
        server: URL, `Server` (token, job id, dtype, …) or `Endpoint`; None for NOWCAST_SERVER, else to forecast in this process.
        push: how far forecasts push.
        wiring: the neural graph of the trained parameters; None to have `wire(model, example_inputs)` make it.
        example_inputs: what the model's `forward` takes, to trace it with; guessed if None.
        on_event: called with each `Event`, on the training thread.
        process_group: the ranks that train this model together; None for all.

    Raises:
        BadArgument: an argument cannot work, or a server rejects the job at the start.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        max_steps: int | None = None,
        interval: int | None = None,
        mode: Mode = "glide",
        forecaster: str | Path | None = None,
        server: "str | Server | Endpoint | None" = None,
        push: Push | None = None,
        wiring: Wiring | None = None,
        example_inputs: Any = None,
        on_event: Callable[[Event], None] | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        _check(model=model, max_steps=max_steps, interval=interval, mode=mode, push=push, wiring=wiring, on_event=on_event)
        self._model, self._optimizers = unwrap(model), find_optimizers(optimizer)
        self._ranks = Ranks(process_group)
        self._mode, self._max_steps, self._interval = mode, max_steps, interval
        self._forecaster = str(forecaster or FORECASTERS[mode])
        self._push = push if push and push.gain is not None else replace(push or Push(), gain=gain_for(self._optimizers))
        self._wiring, self._example_inputs = wiring, example_inputs
        self._endpoint: Any = server if hasattr(server, "register") else None
        self._server = Server.of(None if self._endpoint else server)
        self.job = self._server.new_job()
        """Id of the job at the server."""
        self._journal = Journal(self.job, on_event)
        self._handles: list[Any] = []
        self._wired: dict[str, object] = {}
        self._over = self._entered = False
        self._begin()

    def _begin(self) -> None:
        """Make what depends on which parameters are trained."""
        self._flat = FlatParameters(self._model, self._optimizers)
        if self._flat.sharded and self._wiring is None and self._forecaster not in GRAPH_FREE:
            detail = f"{self._forecaster} needs one, and a model that is split cannot be wired: call wire(model) before fully_shard"
            raise BadArgument("wiring", detail)
        self._forecasts: Forecasts | None = None
        with self._ranks.failing_alike():
            if self._ranks.rank == 0:
                spec, device = self._spec(), self._flat.device
                endpoint = self._endpoint or connect(self._server, spec, job=self.job, forecaster=self._forecaster, device=device)
                self._forecasts = Forecasts(self._flat, endpoint, spec, push=self._push, timeout_s=self._server.timeout_s)
        kind = Jumps if self._mode == "jump" else Boundaries
        self._boundaries = kind(
            self._flat,
            pushed=PushedWeights(self._flat, self._optimizers),
            forecasts=self._forecasts,
            ranks=self._ranks,
            push=self._push,
            journal=self._journal,
            max_steps=self._max_steps,
            interval=self._interval,
            mode=self._mode,
        )

    def _spec(self) -> JobSpec:
        shapes, wiring = [(piece.name, tuple(piece.parameter.shape)) for piece in self._flat.pieces], self._wiring
        if wiring is None:
            names, split = [name for name, _ in shapes], self._flat.sharded
            try:
                report = describe(self._model, self._example_inputs, parameters=names, by_shape=split)
                logged(report, needed=self._forecaster not in GRAPH_FREE)
            except BadWiring as error:
                raise BadArgument("model", error.detail) from error
            wiring, self._wired = report.wiring, report.summary()
        for mine, other in zip_longest(shapes, [(parameter.name, parameter.shape) for parameter in wiring.parameters]):
            if mine != other:
                raise BadArgument("wiring", f"has {other} where the model trains {mine}: wire(model, parameters=names)")
        server = self._server
        try:
            return JobSpec(
                wiring=wiring,
                context=CONTEXT,
                dtype=server.dtype,
                forecaster=name_of(self._forecaster),
                mode=self._mode,
                record=server.record,
                about=self._about(),
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise BadArgument(str(first["loc"][0]), first["msg"]) from error

    def _about(self) -> About:
        group = self._optimizers[-1].param_groups[0]
        rate, seed = group.get("initial_lr", group.get("lr")), torch.initial_seed()
        link = os.environ.get("NOWCAST_LINK") or None
        try:
            return About(lr=rate and float(rate), seed=None if seed == UNSEEDED else seed, link=link)
        except ValidationError as error:
            raise BadArgument("NOWCAST_LINK", f"{link!r} is not a URL such as http://HEAD:8265/#/jobs/NAME") from error

    def start(self) -> Self:
        """Start. `with` does this on entry.

        Raises:
            BadArgument: the server refuses the job, unless a state was loaded before.
        """
        if self._entered:
            raise RuntimeError("a Nowcast can be started once only; make a new one, and load this one's state_dict() into it")
        self._entered = True
        self._claim()
        try:
            with self._ranks.failing_alike():
                if self._forecasts is not None:
                    self._forecasts.sender.open()
            self._handles = [handle := self._optimizers[-1].register_step_post_hook(_hook(weakref.ref(self)))]
            hooks: Any = self._optimizers[-1]._optimizer_step_post_hooks  # noqa: SLF001 -- torch has no `prepend` for these
            hooks.move_to_end(handle.id, last=False)  # before the user's own, so that masks and constraints hold after a push
        except BaseException:
            self.stop()
            raise
        atexit.register(_stop_at_exit, weakref.ref(self))
        return self

    def stop(self) -> None:
        """Stop: remove the hooks, tell the server, end the thread. Takes seconds at most; may be called again."""
        if self._over:
            return
        self._over = True
        _running.discard(self)
        for handle in self._handles:
            handle.remove()
        if self._forecasts is not None:
            self._forecasts.sender.stop(self._boundaries.last_progress())
            self._boundaries.hear_news()
        if self._handles:
            self._tell_end()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __del__(self) -> None:
        if getattr(self, "_entered", False) and not self._over and not sys.is_finalizing():
            self.stop()

    def step(self) -> None:
        """Count an optimizer step. Only for loops whose steps no hook sees: `p.data` updates, SAM's two steps, functional training;
        call it after the weights were changed. The optimizer's own steps are not counted any more then.

        Raises:
            RuntimeError: before the start. After the end nothing happens.
        """
        if not self._entered:
            raise RuntimeError("the Nowcast is not started: count steps within `with`, or call start() first")
        for handle in self._handles:
            handle.remove()
        if not self._over:
            self._count()

    def observe(self, loss: "Tensor | float") -> None:
        """Report the training loss of a step, for the live page and reports. Never waits for the device."""
        self._boundaries.observe(loss)

    @property
    def steps(self) -> int:
        """Optimizer steps counted so far."""
        return self._boundaries.step

    @property
    def events(self) -> list[Event]:
        """All events, in order."""
        return self._journal.events

    @property
    def in_flight(self) -> int:
        """Snapshots taken that have not arrived yet; 0 on ranks that send none."""
        return self._forecasts.sender.in_flight if self._forecasts else 0

    def summary(self) -> dict[str, Any]:
        """Summarise the run so far, in values that JSON can hold: snapshots, nowcasts, reasons, skill, time."""
        journal, forecasts = self._journal, self._forecasts
        return {
            "job": self.job,
            "mode": self._mode,
            "forecaster": self._forecaster,
            "wiring": self._wired,
            "parameters": self._flat.size,
            "steps": self.steps,
            "interval": self._boundaries.interval_after(self.steps),
            "snapshots": {
                "taken": journal.snapshots,
                "sent": forecasts.sender.sent if forecasts else 0,
                "dropped": journal.outcomes["dropped"],
            },
            "nowcasts": {"used": journal.used, "skipped": journal.outcomes["skipped"]},
            "reasons": dict(journal.reasons),
            "server": {"lost": journal.outcomes["lost"], "back": journal.outcomes["back"]},
            "skill": forecasts.sender.skill if forecasts else {},
            "layers": forecasts.layers.means() if forecasts else {},
            "waited_s": journal.waited_s,
            "copied_s": forecasts.buffers.copied_s if forecasts else 0.0,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides model and optimizer: numbers and tensors, under fixed keys.

        Take it after `optimizer.step()`, with the states of model and optimizer. Rank 0's is that of all ranks, however many go on
        from it. Of a model that is split over ranks, all have to take it, and to load it, together.
        """
        with torch.device("cpu"):  # for scripts that make a GPU the default
            return {"version": STATE_VERSION, **self._boundaries.state_dict(), "journal": self._journal.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`, before or after the start; if before, a server that refuses the job by now does not end the
        run. The job's id stays as it is.

        Raises:
            BadArgument: the state is of another version, or of a run that trains other parameters.
        """
        if int(state.get("version", 0)) != STATE_VERSION:
            raise BadArgument("state", f"version {state.get('version')!r}, not {STATE_VERSION}: saved by another version")
        snapshots = state["snapshots"]
        if snapshots and snapshots["context"].shape[-1] != self._flat.size:
            detail = f"of a run that trains {snapshots['context'].shape[-1]} weights; this one trains {self._flat.size}"
            raise BadArgument("state", detail)
        self._boundaries.load_state_dict(state)
        self._journal.load_state_dict(state["journal"])

    def begin_at(self, step: int) -> None:
        """Go on at a step of the run without a state, with a new context: pushes begin and fade when they should."""
        self._boundaries.begin_at(step)

    def _after_step(self, optimizer: Optimizer) -> None:
        # a GradScaler has fused optimizers look at this themselves, and calls no other's step at all if it is set
        skipped = getattr(optimizer, "found_inf", None)
        if (skipped is None or not float(skipped)) and not _within_another_step(optimizer):
            self._count()

    def _count(self) -> None:
        if not self._boundaries.after_step():
            return
        if self._flat.covers(self._model, self._optimizers):
            self._boundaries.end_interval()
        else:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Start a new context, as other parameters are trained now: unfrozen layers, a new head. The same on all ranks."""
        log.warning("%s: the set of trained parameters changed at step %d: starting a new context", self.job, self.steps)
        before, step, self._wiring = self._forecasts, self.steps, None
        try:
            self._begin()
        except Exception:  # whatever it is, training goes on
            log.exception("%s: the changed parameters cannot be forecast; training continues without nowcasts", self.job)
            self._forecasts = before
            self.stop()
            return
        if before is not None:
            before.sender.abandon()
        self._claim()
        self._boundaries.begin_at(step)
        if self._forecasts is not None:
            self._forecasts.sender.open(resumed=True)

    def _claim(self) -> None:
        """Take the parameters over from an earlier `Nowcast` that was not stopped."""
        mine = {id(parameter) for parameter in self._flat.parameters}
        for other in _running - {self}:
            if not mine.isdisjoint(map(id, other._flat.parameters)):  # noqa: SLF001
                log.warning("%s: an earlier Nowcast of this model (%s) was still running; it was stopped", self.job, other.job)
                other.stop()
        _running.add(self)

    def _tell_end(self) -> None:
        """One line on how it went, a warning if nothing came of it. Seen also where no log is set up."""
        of, boundaries = self._max_steps or 0, self._boundaries
        level, sentence = closing_line(self.summary(), of=of, first_due=boundaries.first_due, grown=boundaries.stretch > 1)
        line = f"{self.job}: {sentence}"
        if level < logging.WARNING and not log.hasHandlers():  # as Python prints warnings then
            sys.stderr.write(f"{line}\n")
        log.log(level, "%s", line)


def _positive(value: Any) -> bool:
    return value is None or (type(value) is int and 0 < value < 2**48)


_TAKEN: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {  # what an argument may be
    "model": (lambda value: isinstance(value, nn.Module), "a torch.nn.Module"),
    **dict.fromkeys(("max_steps", "interval"), (_positive, "a positive integer below 2**48, or None")),
    "mode": (lambda value: value in tuple(FORECASTERS), "glide, jump or shadow"),
    "push": (lambda value: value is None or isinstance(value, Push), "a Push, e.g. Push(gain=0.5)"),
    "wiring": (lambda value: value is None or isinstance(value, Wiring), "what wire(model) gives"),
    "on_event": (lambda value: value is None or callable(value), "a function"),
}


def _check(**given: Any) -> None:
    for name, value in given.items():
        fits, what = _TAKEN[name]
        if not fits(value):
            raise BadArgument(name, f"must be {what}, not {value!r:.80}")


def _hook(nowcast: "weakref.ref[Nowcast]") -> Callable[..., None]:
    """A hook that keeps nothing alive: neither a `Nowcast` that was dropped, nor its thread."""

    def hook(optimizer: Optimizer, *_: Any) -> None:
        if (running := nowcast()) is not None:
            running._after_step(optimizer)  # noqa: SLF001

    eager: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return eager


def _within_another_step(optimizer: Optimizer) -> bool:
    """Whether this call of `step` was made by the optimizer's own: torch runs hooks for both if a class extends another's."""
    calls = 0
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 -- unlike counting in hooks, this forgets a step that raised
    while frame:
        if frame.f_code.co_qualname == "Optimizer.profile_hook_step.<locals>.wrapper":
            calls += frame.f_locals["args"][0] is optimizer
        frame = frame.f_back
    return calls > 1


def _stop_at_exit(nowcast: "weakref.ref[Nowcast]") -> None:
    if (running := nowcast()) is not None:
        running.stop()
