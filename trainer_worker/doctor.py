"""`nowcast doctor`: will nowcasts work for this network, with this server? Findings in plain words."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, NamedTuple

import torch
from rich.filesize import decimal

from protos import DISTRIBUTION
from protos.errors import BadWiring, NowcastError
from protos.frames import DTYPE_BYTES, VERSION
from protos.messages import Dtype, JobSpec, Mode, Progress
from trainer_worker.boundary import default_interval
from trainer_worker.endpoints.client import HttpEndpoint
from trainer_worker.endpoints.endpoint import Deadline
from trainer_worker.endpoints.server import Server, embed, name_of
from trainer_worker.errors import BadArgument
from trainer_worker.jump import jump_interval
from trainer_worker.push import CONTEXT, FORECASTERS, GRAPH_FREE
from trainer_worker.wiring import POOR, WiringReport
from trainer_worker.wiring.cli import describe_module

PATIENCE_S: Final = 10.0
MEASURED: Final = 5_000_000  # weights up to which a forecast is made to see how long it takes


class Finding(NamedTuple):
    """One thing that was looked at: if it is not `fine`, the text says what to do."""

    fine: bool
    text: str


@dataclass(frozen=True)
class Question:
    """The run in question; the forecaster is the mode's own if None."""

    forecaster: str | None = None
    mode: Mode = "glide"
    dtype: Dtype = "float32"
    max_steps: int | None = None

    @property
    def made_by(self) -> str:
        return self.forecaster or FORECASTERS[self.mode]

    def spec(self, report: WiringReport) -> JobSpec:
        forecaster = name_of(self.made_by)
        return JobSpec(wiring=report.wiring, context=CONTEXT, dtype=self.dtype, forecaster=forecaster, mode=self.mode)


def examine(place: str | None, url: str | None, question: Question, *, token: str | None, inputs: str | None) -> list[Finding]:
    """Look at the network that `MODULE:CALLABLE` gives, if any (for `inputs` see `load_inputs`), at the server, and whether it has
    room for the network; without a server at forecasts in this process.
    """
    findings: list[Finding] = []
    report = None
    if place is not None:
        try:
            report = describe_module(place, inputs=inputs)
        except (ValueError, BadWiring) as error:
            return [Finding(False, str(error))]
        findings += [*_wiring(report, question), _traffic(report, question)]
    if url is not None:
        findings += _server(url, report, question, token=token)
    elif report is not None:
        findings.append(_forecast(report, question))
    return findings


def _wiring(report: WiringReport, question: Question) -> Iterator[Finding]:
    needed = question.made_by not in GRAPH_FREE
    hint = "give --inputs, as forward takes them" if needed else f"{question.made_by} does not need it"
    fine = report.coverage >= POOR
    yield Finding(fine or not needed, report.sentence + ("" if fine else f"; {hint}"))
    if report.left_out:
        yield Finding(True, f"left out, as they cannot be forecast: {', '.join(report.left_out[:5])}")


def _traffic(report: WiringReport, question: Question) -> Finding:
    up, down = (report.wiring.size * DTYPE_BYTES[dtype] for dtype in (question.dtype, "float32"))
    jumping = question.mode == "jump"
    often = f"every interval; a forecast of {decimal(down)} comes back every {f'{CONTEXT} intervals' if jumping else 'interval'}"
    text = f"a snapshot of {decimal(up)} in {question.dtype} is sent {often}"
    if question.max_steps is not None:
        interval = (jump_interval if jumping else default_interval)(question.max_steps)
        total = question.max_steps // interval * (up + down // (CONTEXT if jumping else 1))
        text += f"; with intervals of {interval} steps {decimal(total)} over the run"
    return Finding(True, text)


def _forecast(report: WiringReport, question: Question) -> Finding:
    name = question.made_by
    try:
        forecaster = embed(question.spec(report), forecaster=name, device=torch.device("cpu")).forecaster
    except BadArgument as error:
        return Finding(False, str(error))
    if report.wiring.size > MEASURED:
        return Finding(True, f"{name} runs in this process; its time is not measured beyond {MEASURED:,} weights")
    states = [torch.randn(report.wiring.size) * 0.01 for _ in range(CONTEXT)]
    for _ in range(2):  # the first takes longer
        start = time.perf_counter()
        forecaster.forecast(report.wiring, states, horizons=(forecaster.glide_horizon,))
    text = f"{name} (mode {question.mode}) takes {time.perf_counter() - start:.2g} s for a forecast here"
    return Finding(True, f"{text}; where an interval is shorter, training waits for it (for a server it never waits)")


def _server(url: str, report: WiringReport | None, question: Question, *, token: str | None) -> Iterator[Finding]:
    deadline = Deadline(PATIENCE_S)
    try:
        with closing(HttpEndpoint(url, job=Server().new_job(), token=token)) as endpoint:
            info = endpoint.info(deadline=deadline)
            yield Finding(True, f"{url} answers: version {info.version} (here {version(DISTRIBUTION)}), on {info.device}")
            if info.protocol != VERSION:
                spoken = f"the server speaks version {info.protocol} of the protocol, this worker {VERSION}"
                yield Finding(False, f"{spoken}: install the same release on both")
            elif question.made_by not in info.forecasters:
                yield Finding(False, f"there is no forecaster {question.made_by!r}; there are {', '.join(info.forecasters)}")
            elif report is not None:
                endpoint.register(question.spec(report), replace=False, deadline=deadline)
                endpoint.finish(Progress(step=0), deadline=deadline)
                yield Finding(True, "the server takes the job")
    except NowcastError as error:
        hint = "; give NOWCAST_TOKEN" if error.field == "authorization" else ""
        yield Finding(False, f"{error.detail}{hint}")
    except BadArgument as error:
        yield Finding(False, str(error))
