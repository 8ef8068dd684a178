"""The `Nowcast` context manager: two lines in anyone's training loop."""

import logging
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle

from protos.messages import Dtype
from protos.wiring import Wiring
from trainer_worker.assembly import (
    check_dtype,
    check_kinds,
    check_mode,
    check_policy,
    check_sharded,
    check_timing,
    claim,
    make_endpoint,
    make_policy,
    make_spec,
    make_trials,
    new_job,
    release,
)
from trainer_worker.context import Context
from trainer_worker.cycle import Cycle
from trainer_worker.endpoints.endpoint import Endpoint
from trainer_worker.errors import BadArgument
from trainer_worker.events import Event, Journal
from trainer_worker.jump import Jump, Landing
from trainer_worker.rates import Rates
from trainer_worker.schedule import Policy
from trainer_worker.trials.gauge import Gauge, Probe
from trainer_worker.trials.guard import Guard
from trainer_worker.weights.distributed import Ranks, unwrap
from trainer_worker.weights.flat import FlatParameters

log = logging.getLogger(__name__)

STATE_VERSION: Final = 7
TIMEOUT_S: Final = 30.0


class Nowcast:
    """Streams snapshots of a model in training, and jumps to where a forecast sees its weights.

    with Nowcast(model, optimizer, server="http://127.0.0.1:8440", max_steps=10_000):
        for batch in loader:  # the loop is unchanged
            loss(model, batch).backward(); optimizer.step(); optimizer.zero_grad()

    Every `interval` optimizer steps the parameters are copied to the host and sent in the background; every
    `context * interval` steps training waits for a forecast, which is written into the parameters in place. The optimizer's
    moments stay, unless `jump` says otherwise. A step that a `GradScaler` leaves out is not counted. Whatever goes wrong with a
    server or a forecast, the nowcast is skipped and counted, and training goes on.

    Data-parallel training: make one on every rank, with the same arguments. Rank 0 talks to the server; its decision and the
    weights are broadcast at a period's end. Buffers (running statistics) are left alone, on each rank its own. Of a model split by
    `fully_shard` (FSDP2) snapshots are gathered on rank 0 one parameter at a time, and forecasts scattered back; give the `wiring`
    that was made before it was split, and keep every rank's own `state_dict`.

    Args:
        model: what is trained; may be wrapped by `DistributedDataParallel`, `DataParallel` or `torch.compile`.
        optimizer: its `step` is counted. A jump changes only parameters that it trains.
        server: URL of a nowcast server, `embedded` to forecast in this process, or any `Endpoint`; None for the URL in
            NOWCAST_SERVER, which `nowcast submit` sets, else `embedded`.
        max_steps: optimizer steps of the whole run.
        job: id at the server, unique among running jobs; None for a random one, which begins with NOWCAST_JOB.
        token: bearer token for the server; None for that in NOWCAST_TOKEN.
        forecaster: which forecaster to use.
        record: allow a server that records (`--record`) to keep the snapshots, to fit forecasters to.
        checkpoint: weights of the forecaster, in this process only; None for those that are shipped.
        context: snapshots a forecast is made from.
        interval: optimizer steps between two of them.
        policy: how far to jump; None for the paper's schedule. Where jumps are tried, it is made more cautious by each that fails.
            `BestAfterRecovery` tries several horizons and keeps the best, for steps that `guard` has to grant.
        lr_scheduler: the optimizer's, to look ahead on: under a falling learning rate jumps are shortened by as much as the rate
            to come is lower than the context's. None has the rates seen over the context drawn on.
        quiet: steps before each snapshot whose average it is, from 0 to `interval`: the noise of single steps is not forecast.
            Costs a copy of the weights on their device, and a pass over them in each of these steps. The displacement that is
            forecast is added to the weights as they are.
        jump: how a forecast is taken over: how much of it, by default its direction and not the growth of weights, and what becomes
            of moments and normalisation statistics.
        dtype: `float32`, `float16` or `bfloat16`: in which snapshots are kept and sent. Forecasts come back in float32.
        wiring: the model's neural graph; None to have `wire(model, example_inputs)` make it.
        example_inputs: what the model's `forward` takes, to trace it with; guessed if None.
        timeout_s: how long training may wait for one nowcast. (Forecasts in this process are never cut short.)
        probe: gives the model's loss on held batches, the same each time; called in evaluation mode, without gradients, on every
            rank, while the model has the average of its latest weights. With it each jump is a trial, undone exactly if the loss
            has not recovered in time (`trainer_worker.trials.guard`).
        guard: how jumps are tried; None for the defaults, if there is a probe. With a guard and no probe, the training losses
            given to `observe` are the measure.
        averages: averages of the weights that the loop keeps (`WeightAverage`, `torch.optim.swa_utils.AveragedModel`): a jump moves
            them by as much as the model. What it gains shows in them, without the noise.
        overlap: training goes on while forecasts are made; what arrives before the next snapshot is added as a displacement.
        shadow: forecasts are made and never loaded.
        on_event: called with each `Event`, on the training thread.
        process_group: the ranks that train this model together; None for all.

    Raises:
        BadArgument: an argument that cannot work, by name; also when the `with` block is entered. On every rank if on one. A server
            that refuses the job is one, unless a state was loaded before: a resumed run goes on, without nowcasts until the server
            takes it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        server: "str | Endpoint | None" = None,
        max_steps: int,
        job: str | None = None,
        token: str | None = None,
        forecaster: str = "nino",
        record: bool = False,
        checkpoint: str | None = None,
        context: int = 5,
        interval: int = 200,
        policy: Policy | None = None,
        lr_scheduler: LRScheduler | None = None,
        quiet: int = 0,
        jump: Jump | None = None,
        dtype: Dtype = "float32",
        wiring: Wiring | None = None,
        example_inputs: Any = None,
        timeout_s: float = TIMEOUT_S,
        probe: Probe | None = None,
        guard: Guard | None = None,
        averages: Sequence[nn.Module] = (),
        overlap: bool = False,
        shadow: bool = False,
        on_event: Callable[[Event], None] | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        check_timing(max_steps=max_steps, context=context, interval=interval, timeout_s=timeout_s, quiet=quiet)
        mode = check_mode(overlap=overlap, shadow=shadow, interval=interval)
        options = {"policy": policy, "jump": jump, "wiring": wiring, "probe": probe, "guard": guard, "on_event": on_event}
        check_kinds(model=model, optimizer=optimizer, options=options)
        module = unwrap(model)
        self._parameters = FlatParameters(module, optimizer, dtype=check_dtype(dtype))
        check_sharded(self._parameters, wiring)
        self._optimizer = optimizer
        self._ranks = Ranks(process_group)
        self._interval, self._period, self._quiet = interval, context * interval, quiet
        tried = guard is not None or probe is not None
        policy = make_policy(policy, max_steps=max_steps, period=self._period, tried=tried)
        rates = Rates(optimizer, lr_scheduler, interval=interval, max_steps=max_steps)
        landing = Landing(
            jump or Jump(),
            parameters=self._parameters,
            model=module,
            optimizer=optimizer,
            interval=interval,
            probe=probe,
            averages=averages,
        )
        self._hook: RemovableHandle | None = None
        self._over = False
        self._job = job or new_job()
        self._journal = Journal(self._job, on_event)
        self._forecaster = forecaster
        self._context: Context | None = None
        with self._ranks.failing_alike():
            if self._ranks.rank == 0:
                spec = make_spec(
                    module,
                    self._parameters,
                    wiring=wiring,
                    example_inputs=example_inputs,
                    context=context,
                    interval=interval,
                    dtype=dtype,
                    forecaster=forecaster,
                    record=record,
                )
                endpoint = make_endpoint(
                    server, job=self._job, token=token, spec=spec, checkpoint=checkpoint, device=self._parameters.device
                )
                check_policy(policy, endpoint)
                self._context = Context(self._parameters, endpoint, spec, timeout_s=timeout_s)
        self._gauge: Gauge | None
        self._gauge, trials = make_trials(
            guard,
            probe,
            model=module,
            parameters=self._parameters,
            optimizer=optimizer,
            ranks=self._ranks,
            policy=policy,
            interval=interval,
            period=self._period,
            max_steps=max_steps,
            averages=averages,
        )
        self._cycle = Cycle(
            parameters=self._parameters,
            context=self._context,
            ranks=self._ranks,
            policy=policy,
            rates=rates,
            landing=landing,
            trials=trials,
            journal=self._journal,
            interval=interval,
            period=self._period,
            max_steps=max_steps,
            mode=mode,
            quiet=quiet,
        )
        if max_steps <= self._period:
            log.warning(
                "max_steps=%d is not beyond the first period of %d steps: there will be no nowcast", max_steps, self._period
            )

    def __enter__(self) -> Self:
        if self._hook is not None:
            raise RuntimeError("this Nowcast is in use already")
        if self._over:
            raise RuntimeError("a Nowcast is entered once; make another, and give it this one's state_dict to go on")
        claim(self._parameters, self._job)
        try:
            with self._ranks.failing_alike():
                if self._context is not None:
                    self._context.open()
            eager = torch.compiler.disable(self._after_step)  # type: ignore[no-untyped-call]  # torch does not annotate it
            self._hook = self._optimizer.register_step_post_hook(eager)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._over = True
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        release(self._parameters)
        if self._context is not None:
            self._context.close()
            self._cycle.hear_news()

    @property
    def step(self) -> int:
        """Optimizer steps counted so far."""
        return self._cycle.step

    @property
    def events(self) -> list[Event]:
        """Everything worth telling, in order."""
        return self._journal.events

    @property
    def job(self) -> str:
        """Id of the job at the server."""
        return self._job

    @property
    def in_flight(self) -> int:
        """Snapshots that were taken and have not arrived yet; 0 on ranks that send none."""
        return self._context.in_flight if self._context else 0

    def summary(self) -> dict[str, Any]:
        """The run so far as JSON-able values: what was sent, what became of each nowcast, why, and what it cost."""
        tally = self._journal.tally
        context = self._context
        return {
            "job": self._job,
            "forecaster": self._forecaster,
            "steps": self.step,
            "snapshots": {"taken": tally.snapshots, "sent": context.sent if context else 0, "dropped": tally.dropped},
            "nowcasts": {outcome: tally.nowcasts[outcome] for outcome in ("accepted", "rejected", "skipped")},
            "reasons": dict(tally.reasons),
            "server": {"lost": tally.server["lost"], "back": tally.server["back"]},
            "skill": context.skill if context else {},
            "cost_steps": tally.cost_steps,
            "waited_s": tally.waited_s,
            "copied_s": context.copied_s if context else 0.0,
        }

    def observe(self, loss: "Tensor | float") -> None:
        """Tell the training loss of a step; the measure of jumps that are tried without a probe. Nothing waits for it."""
        if self._gauge is not None:
            self._gauge.observe(loss)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs besides model and optimizer: plain values and tensors.

        Take it after `optimizer.step()`, with the states of model and optimizer. In data-parallel training rank 0's will do
        for all ranks, unless jumps are tried: what a jump is undone to has each rank's own random state and buffers.
        """
        return {"version": STATE_VERSION, "job": self._job, **self._cycle.state_dict(), "journal": self._journal.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`, before or after the `with` block is entered; if before, a server that refuses the job by now
        does not end the run. The job's id stays as it is.

        Raises:
            BadArgument: the state is of another kind of run.
        """
        if state.get("version") != STATE_VERSION:
            raise BadArgument("state", f"version {state.get('version')!r}, not {STATE_VERSION}: not a state of this version")
        for name, mine in (("interval", self._interval), ("period", self._period), ("quiet", self._quiet)):
            if state[name] != mine:
                raise BadArgument("state", f"was saved with {name} = {state[name]}, this run has {mine}")
        if (state["trials"] is None) != (self._gauge is None):
            raise BadArgument("state", "of two runs one tries its jumps (probe= or guard=) and one does not")
        self._cycle.load_state_dict(state)
        self._journal.load_state_dict(state["journal"])

    def _after_step(self, *_: Any) -> None:
        # a GradScaler has fused optimizers look at this themselves, and calls no other's step at all if it is set
        skipped = getattr(self._optimizer, "found_inf", None)
        if skipped is None or not float(skipped):
            self._cycle.after_step()
