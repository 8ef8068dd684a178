"""Wiring cannot hurt: a guess that costs gigabytes or minutes is given up, and what is not understood costs little."""

import sys
import time

import pytest
import torch
from architectures import Lambda
from torch import Tensor, nn

from protos.wiring import EdgeType
from trainer_worker.wiring import describe, wire


def test_a_guess_that_is_too_large_is_not_run() -> None:
    """Attention over a guessed image took 12 GB for a model of 0.8M parameters: the matrix must not even be made."""
    made: list[int] = []

    def forward(m: nn.Module, image: Tensor) -> Tensor:  # an image of side s makes a matrix of s^4 elements
        pixels = nn.functional.interpolate(m.first(image), scale_factor=128).flatten(2)
        scores = pixels.transpose(1, 2) @ pixels
        made.append(scores.numel())
        return pixels @ scores.softmax(-1)

    report = describe(Lambda(forward, first=nn.Conv2d(3, 4, 3, padding=1)))
    assert made == []
    assert any("returns" in remark for remark in report.remarks)
    assert sum(block.size for block in report.wiring.blocks) == report.wiring.size  # by its shapes alone


def test_a_long_run_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training run would begin minutes late, for its wiring."""

    def forward(m: nn.Module, inputs: Tensor) -> Tensor:
        for _ in range(10_000_000):
            inputs = m.layer(inputs)
        return inputs

    monkeypatch.setattr(sys.modules["trainer_worker.wiring.trace.run"], "SECONDS", 0.5)
    start = time.process_time()
    report = describe(Lambda(forward, layer=nn.Linear(4, 4)))
    assert time.process_time() - start < 5
    assert "no guess ran" in report.remarks[0]
    assert "give example inputs" in report.sentence


def test_experts_that_nothing_reaches_cost_little() -> None:
    """Thousands of experts took a minute: each was run by itself, and each run began with all parameters."""

    def forward(m: nn.Module, inputs: Tensor) -> Tensor:
        chosen = m.gate(inputs).argmax(-1).tolist()
        return torch.stack([m.experts[index](row) for index, row in zip(chosen, inputs, strict=True)])

    experts = nn.ModuleList(nn.Linear(8, 2) for _ in range(4096))
    start = time.process_time()
    wiring = wire(Lambda(forward, gate=nn.Linear(8, 4096), experts=experts))
    assert time.process_time() - start < 15  # 48 s at 8192 before
    assert sum(block.size for block in wiring.blocks) == wiring.size


def test_standardised_weights_are_weights() -> None:
    """A grouped convolution on normalised weights would be taken for an embedding, and its gain for nothing."""

    def forward(m: nn.Module, image: Tensor) -> Tensor:
        weight = m.conv.weight
        norm = nn.functional.batch_norm(weight.reshape(1, 8, -1), None, None, weight=m.gain.view(-1), training=True)
        return nn.functional.conv2d(image, norm.reshape_as(weight), m.conv.bias, padding=1, groups=2)

    net = Lambda(forward, conv=nn.Conv2d(8, 8, 3, groups=2, padding=1), gain=nn.Parameter(torch.ones(8, 1, 1, 1)))
    report = describe(net, torch.randn(2, 8, 6, 6))
    rows = {row.name: row for row in report.rows}
    assert rows["conv.weight"].kinds == (EdgeType.CONVOLUTION,)
    assert rows["gain"].kinds == (EdgeType.NORM,)
    assert rows["gain"].targets == rows["conv.weight"].targets
    assert report.coverage == 1


def test_a_large_model_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wiring a model of tens of gigabytes would take as much memory again, beside the training."""
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
    expected = wire(model).hash
    monkeypatch.setattr(sys.modules["trainer_worker.wiring.trace.sandbox"], "LARGEST_COPY", 1000)
    allocated: list[torch.device] = []
    clone = Tensor.clone
    monkeypatch.setattr(Tensor, "clone", lambda tensor, **_: allocated.append(tensor.device) or clone(tensor))
    assert wire(model).hash == expected
    assert {device.type for device in allocated} == {"meta"}
