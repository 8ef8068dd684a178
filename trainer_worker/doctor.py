"""`nowcast doctor`: will nowcasts work for this network, with this server? Findings in plain words."""

import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

import httpx2
import torch

from protos import DISTRIBUTION
from protos.errors import BadWiring, NowcastError
from protos.frames import VERSION
from protos.messages import API, Dtype, Info, JobSpec, Progress
from trainer_worker.endpoints.client import HttpEndpoint
from trainer_worker.endpoints.deadline import Deadline
from trainer_worker.endpoints.http_client import http_client
from trainer_worker.endpoints.server import Server, embed
from trainer_worker.endpoints.strangers import not_a_status, stranger_error
from trainer_worker.errors import BadArgument
from trainer_worker.push import CONTEXT
from trainer_worker.wiring import POOR, WiringReport, describe
from trainer_worker.wiring.cli import load_inputs, load_module

PATIENCE_S: Final = 10.0
MEASURED: Final = 5_000_000
"""Weights up to which a forecast is made to see how long it takes."""
SHARE: Final = 200
BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        fine: nothing has to be done.
        text: what was found, and if it is not fine what to do.
    """

    fine: bool
    text: str


@dataclass(frozen=True)
class Question:
    """What is to be looked at.

    Args:
        forecaster: of the job.
        dtype: of snapshots.
        max_steps: of the run, None if it is not known.
    """

    forecaster: str = "linear"
    dtype: Dtype = "float32"
    max_steps: int | None = None


def examine(place: str | None, url: str | None, question: Question, *, token: str | None, inputs: str | None) -> list[Finding]:
    """Look at a network, a server, and whether the one has room for the other.

    Args:
        place: `MODULE:CALLABLE` that gives the network; None for none.
        url: of the server; None to forecast in this process.
        question: what the run would be.
        token: for the server.
        inputs: see `load_inputs`.
    """
    findings: list[Finding] = []
    report = None
    if place is not None:
        try:
            report = describe(load_module(place), None if inputs is None else load_inputs(inputs))
        except (ValueError, BadWiring) as error:
            return [Finding(fine=False, text=str(error))]
        findings += [*_wiring(report), _traffic(report, question)]
    if url is not None:
        findings += _server(url, report, question, token=token)
    elif report is not None:
        findings.append(_forecast(report, question))
    return findings


def _wiring(report: WiringReport) -> list[Finding]:
    poor = report.coverage < POOR
    advice = "; give --inputs, as forward takes them" if poor else ""
    told = [Finding(fine=not poor, text=f"{report.sentence}{advice}")]
    if report.left_out:
        told.append(Finding(fine=True, text=f"left out, as they cannot be forecast: {', '.join(report.left_out[:5])}"))
    return told + [Finding(fine=not poor, text=remark) for remark in report.remarks[:3]]


def _traffic(report: WiringReport, question: Question) -> Finding:
    up, down = (report.wiring.size * BYTES[dtype] / 1e6 for dtype in (question.dtype, "float32"))
    text = f"a snapshot is {up:.3g} MB in {question.dtype}, a forecast {down:.3g} MB; one of each every interval"
    if question.max_steps is not None:
        interval = max(1, question.max_steps // SHARE)
        count = question.max_steps // interval
        text += f" of {interval} steps, {count * (up + down) / 1e3:.3g} GB over the run"
    return Finding(fine=True, text=text)


def _forecast(report: WiringReport, question: Question) -> Finding:
    """Make a forecast in this process."""
    spec = JobSpec(wiring=report.wiring, context=CONTEXT, dtype=question.dtype, forecaster=question.forecaster)
    try:
        endpoint = embed(spec, forecaster=question.forecaster, device=torch.device("cpu"))
    except BadArgument as error:
        return Finding(fine=False, text=str(error))
    if report.wiring.size > MEASURED:
        text = f"{question.forecaster} runs in this process; its time is not measured beyond {MEASURED:,} weights"
        return Finding(fine=True, text=text)
    states = [torch.randn(report.wiring.size) * 0.01 for _ in range(CONTEXT)]
    times = []
    for _ in range(2):
        start = time.perf_counter()
        endpoint.forecaster.forecast(report.wiring, states, horizons=(endpoint.forecaster.glide_horizon,))
        times.append(time.perf_counter() - start)
    text = f"{question.forecaster} takes {times[1]:.2g} s for a forecast here ({times[0]:.2g} s for the first)"
    return Finding(fine=True, text=f"{text}; if an interval is shorter, training waits for it, with a server it does not")


def _server(url: str, report: WiringReport | None, question: Question, *, token: str | None) -> list[Finding]:
    try:
        info = _info(url, token=token)
    except BadArgument as error:
        return [Finding(fine=False, text=str(error))]
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        detail = f"no server answers at {url} ({error or type(error).__name__}); `nowcast-server run` starts one"
        return [Finding(fine=False, text=detail)]
    except NowcastError as error:
        hint = "; give NOWCAST_TOKEN" if error.field == "authorization" else ""
        return [Finding(fine=False, text=f"{error.detail}{hint}")]
    mine = version(DISTRIBUTION)
    found = [Finding(fine=True, text=f"{url} answers: version {info.version} (here {mine}), on {info.device}")]
    if info.protocol != VERSION:
        text = f"the server speaks version {info.protocol} of the protocol, this worker {VERSION}: install the same release on both"
        found.append(Finding(fine=False, text=text))
    if question.forecaster not in info.forecasters:
        text = f"there is no forecaster {question.forecaster!r}; there are {', '.join(info.forecasters)}"
        found.append(Finding(fine=False, text=text))
    elif report is not None and info.protocol == VERSION:
        found.append(_room(url, report, question, token=token))
    return found


def _info(url: str, *, token: str | None) -> Info:
    with http_client(url, token=token) as client:
        answer = client.get(f"{API}/info", timeout=PATIENCE_S)
    media = answer.headers.get("content-type", "")
    if not answer.is_success:
        if "problem+json" in media:
            raise NowcastError(answer.json()["detail"], field=answer.json().get("field"))
        raise stranger_error(answer.status_code, answer.headers, url=str(answer.request.url))
    try:
        return Info.model_validate_json(answer.content)
    except ValueError as error:
        raise not_a_status(answer.content, media=media, url=str(answer.request.url)) from error


def _room(url: str, report: WiringReport, question: Question, *, token: str | None) -> Finding:
    """Register the job, and end it at once."""
    endpoint = HttpEndpoint(url, job=Server().new_job(), token=token)
    spec = JobSpec(wiring=report.wiring, context=CONTEXT, dtype=question.dtype, forecaster=question.forecaster)
    deadline = Deadline(PATIENCE_S)
    try:
        endpoint.register(spec, replace=False, deadline=deadline)
        endpoint.finish(Progress(step=0), deadline=deadline)
    except NowcastError as error:
        return Finding(fine=False, text=f"the server rejected the job ({error.code}): {error.detail}")
    finally:
        endpoint.close()
    return Finding(fine=True, text="the server takes the job")
