"""Run the checks one after another; a failure does not stop the others."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

from nowcast_server.nino.checkpoint import Checkpoint
from nowcast_server.selftest import correctness, speed
from nowcast_server.selftest.setup import Failed, Figures, Setup

CHECKS: Final[Mapping[str, Callable[[Setup], Figures]]] = {
    check.__name__: check
    for check in (
        correctness.parity,
        correctness.determinism,
        correctness.pinned_memory,
        correctness.device_memory,
        correctness.out_of_memory,
        correctness.rolling_context,
        speed.overlap,
        speed.throughput,
        speed.published,
        speed.mixed_jobs,
    )
}


@dataclass(frozen=True)
class Outcome:
    """Of one check.

    Args:
        name: of the check.
        ok: whether it held.
        seconds: it took.
        figures: it measured.
        detail: what failed.
    """

    name: str
    ok: bool
    seconds: float
    figures: Figures
    detail: str = ""


def outcomes(device: torch.device, checkpoint: Checkpoint) -> Iterator[Outcome]:
    """Check after check."""
    setup = Setup(device, checkpoint)
    for name, check in CHECKS.items():
        start = time.perf_counter()
        figures, detail = {}, ""
        try:
            with torch.no_grad():
                figures = check(setup)
        except Failed as error:
            detail = str(error)
        except Exception as error:  # noqa: BLE001 -- whatever a device does is this check's outcome
            detail = f"{type(error).__name__}: {error}"
        yield Outcome(name, not detail, time.perf_counter() - start, figures, detail)


def as_json(done: list[Outcome], *, device: torch.device, checkpoint: Checkpoint) -> dict[str, Any]:
    """All that is to be known, for a file."""
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "ok": all(outcome.ok for outcome in done),
        "device": str(device),
        "name": named,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "checkpoint": checkpoint.name,
        "hidden": checkpoint.options.hidden,
        "seconds": sum(outcome.seconds for outcome in done),
        "checks": [asdict(outcome) for outcome in done],
    }
