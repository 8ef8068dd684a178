"""The stream of forecasts, with CUDA's own replaced: it takes a device to run one, not to ask in which order they wait."""

import pytest
import torch

from nowcast_server import streams
from nowcast_server.streams import own_stream, wait


class Stream:
    """Notes what it waits for."""

    current: "Stream"

    def __init__(self, device: torch.device, *, priority: int = 0) -> None:
        self.device, self.priority = device, priority
        self.waited: list[Stream | None] = []
        self.before: list[Stream] = []

    def wait_stream(self, other: "Stream") -> None:
        self.waited.append(other)

    def synchronize(self) -> None:
        self.waited.append(None)

    def __enter__(self) -> None:
        self.before.append(Stream.current)
        Stream.current = self

    def __exit__(self, *_: object) -> None:
        Stream.current = self.before.pop()


@pytest.fixture(autouse=True)
def training(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """The stream on which training runs."""
    first = torch.device("cuda", 0)
    Stream.current = Stream(first)
    monkeypatch.setattr(streams, "_STREAMS", {})
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream.current)
    return Stream.current


def test_forecasts_have_one_stream_of_their_own(training: Stream) -> None:
    """Each would queue its work behind the training's, or on a stream that knows nothing of the snapshots uploaded on another."""
    used = []
    for name in ("cuda", "cuda:0"):
        with own_stream(torch.device(name), shared=False):
            used.append(Stream.current)
            with own_stream(torch.device("cuda:0"), shared=True):  # as a forecaster does within a server
                used.append(Stream.current)
    assert len(set(used)) == 1
    assert used[0] is not training
    assert used[0].priority == streams.LOWEST
    assert used[0].waited == training.waited == []
    assert Stream.current is training


def test_tensors_that_pass_between_streams_are_waited_for(training: Stream) -> None:
    """A forecast would read snapshots that are still being written, or its caller a forecast that is not there yet."""
    with own_stream(training.device, shared=True):
        ours = Stream.current
        assert (ours.waited, training.waited) == ([training], [])
        wait(training.device)
    assert ours.waited == [training, None]
    assert training.waited == [ours]
