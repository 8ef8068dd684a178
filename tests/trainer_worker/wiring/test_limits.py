"""Wiring cannot hurt: a guess that costs gigabytes or minutes is given up, and what is not understood costs little."""

import sys
import time
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from protos.wiring import EdgeType
from trainer_worker.wiring import describe, wire


class Attentive(nn.Module):
    """Every pixel looks at every other: an image of side s makes a matrix of s^4 elements."""

    largest: ClassVar[int] = 0

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.scale = scale

    def forward(self, image: Tensor) -> Tensor:
        pixels = nn.functional.interpolate(self.first(image), scale_factor=self.scale).flatten(2)
        scores = pixels.transpose(1, 2) @ pixels
        Attentive.largest = max(Attentive.largest, scores.numel())
        return pixels @ scores.softmax(-1)


def test_a_guess_that_is_too_large_is_not_run() -> None:
    """Attention over a guessed image took 12 GB for a model of 0.8M parameters: the matrix must not even be made."""
    Attentive.largest = 0
    report = describe(Attentive(scale=128))
    assert Attentive.largest == 0
    assert any("returns" in remark for remark in report.remarks)
    assert sum(block.size for block in report.wiring.blocks) == report.wiring.size  # by its shapes alone


class Long(nn.Module):
    """Takes minutes in small steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        for _ in range(10_000_000):
            inputs = self.layer(inputs)
        return inputs


def test_a_long_run_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training run would begin minutes late, for its wiring."""
    monkeypatch.setattr(sys.modules["trainer_worker.wiring.trace.run"], "SECONDS", 0.5)
    start = time.process_time()
    report = describe(Long())
    assert time.process_time() - start < 5
    assert "no guess ran" in report.remarks[0]
    assert "give example inputs" in report.sentence


class Routed(nn.Module):
    """Many experts, each input goes to one."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(8, experts)
        self.experts = nn.ModuleList(nn.Linear(8, 2) for _ in range(experts))

    def forward(self, inputs: Tensor) -> Tensor:
        chosen = self.gate(inputs).argmax(-1).tolist()
        return torch.stack([self.experts[index](row) for index, row in zip(chosen, inputs, strict=True)])


def test_experts_that_nothing_reaches_cost_little() -> None:
    """Thousands of experts took a minute: each was run by itself, and each run began with all parameters."""
    model = Routed(4096)
    start = time.process_time()
    wiring = wire(model)
    assert time.process_time() - start < 15  # 48 s at 8192 before
    assert sum(block.size for block in wiring.blocks) == wiring.size


class Standardised(nn.Module):
    """A grouped convolution whose weights are normalised, with a gain of its own (normaliser-free networks)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, groups=2, padding=1)
        self.gain = nn.Parameter(torch.ones(8, 1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        weight = self.conv.weight
        norm = nn.functional.batch_norm(weight.reshape(1, 8, -1), None, None, weight=self.gain.view(-1), training=True)
        return nn.functional.conv2d(image, norm.reshape_as(weight), self.conv.bias, padding=1, groups=2)


def test_standardised_weights_are_weights() -> None:
    """A convolution on normalised weights would be taken for an embedding, and its gain for nothing."""
    report = describe(Standardised(), torch.randn(2, 8, 6, 6))
    rows = {row.name: row for row in report.rows}
    assert rows["conv.weight"].kinds == (EdgeType.CONVOLUTION,)
    assert rows["gain"].kinds == (EdgeType.NORM,)
    assert rows["gain"].targets == rows["conv.weight"].targets
    assert report.coverage == 1


class Config:
    sample_size = 12
    cross_attention_dim = 6


class Conditioned(nn.Module):
    """Takes images of a stated size, steps and a second sequence, as diffusion models do."""

    config = Config()

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.step = nn.Linear(1, 4)
        self.text = nn.Linear(6, 4)
        self.place = nn.Parameter(torch.zeros(4, 12, 12))

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        told = self.step(timestep[:, None].float()) + self.text(encoder_hidden_states).mean(1)
        return self.first(sample) + self.place + told[:, :, None, None]


def test_stated_sizes_are_guessed() -> None:
    """A diffusion model would be run in sizes it does not have, or not at all, though its configuration states them."""
    report = describe(Conditioned())
    assert report.inputs == "guessed inputs 2x3x12x12 float32, 2 int64, 2x8x6 float32"
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
