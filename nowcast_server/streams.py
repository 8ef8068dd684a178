"""A CUDA stream for forecasts, beside the training steps of the same process: one that is queued later does not wait for a forecast
that is queued apart. CUDA knows no priority below that of the default stream, on which training runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def own_stream(device: torch.device, *, shared: bool) -> Iterator[None]:
    """Within it, CUDA work of this thread goes to the stream of forecasts; if `shared`, it and the caller's wait for each other."""
    if device.type != "cuda":
        yield
        return
    caller = torch.cuda.current_stream(device)
    ours = _stream(caller.device)  # `cuda` and `cuda:0` may be one
    if shared and caller != ours:
        ours.wait_stream(caller)
    with torch.cuda.stream(ours):
        yield
    if shared and caller != ours:
        caller.wait_stream(ours)


def wait(device: torch.device) -> None:
    """Wait for what was queued on the current stream: rows that were uploaded may be written to again."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
