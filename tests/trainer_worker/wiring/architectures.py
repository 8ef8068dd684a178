"""Networks as users write them, each with an example of its inputs."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
import transformers
from torch import Tensor, nn


class UNet(nn.Module):
    """Skip connections by concatenation, transposed convolutions, group norm."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.down1 = self._block(1, width)
        self.down2 = self._block(width, 2 * width)
        self.bottom = self._block(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.join2 = self._block(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join1 = self._block(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.bottom(F.max_pool2d(second, 2))
        x = self.join2(torch.cat([self.up2(x), second], dim=1))
        x = self.join1(torch.cat([self.up1(x), first], dim=1))
        return self.head(x)


def efficientnet() -> nn.Module:
    """Expand, depthwise, squeeze and excite, project, add."""
    sizes = {
        "in_channels": [4],
        "out_channels": [4],
        "strides": [1],
        "kernel_sizes": [5],
        "num_block_repeats": [2],
        "hidden_dim": 8,
    }
    scale = {"width_coefficient": 1 / 160, "depth_coefficient": 1.0, "expand_ratios": [3], "image_size": 16}
    return transformers.EfficientNetForImageClassification(transformers.EfficientNetConfig(**sizes, **scale, num_labels=5))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.tokens = nn.Sequential(nn.Linear(tokens, 6), nn.GELU(), nn.Linear(6, tokens))
        self.channels = nn.Sequential(nn.Linear(channels, 7), nn.GELU(), nn.Linear(7, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class MLPMixer(nn.Module):
    """Linear layers over tokens and over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 5, 4, stride=4)
        self.blocks = nn.Sequential(MixerBlock(16, 5), MixerBlock(16, 5))
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


class GAN(nn.Module):
    """Two networks in one module that has no forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.LeakyReLU(0.2), nn.Linear(8, 16), nn.Tanh())
        self.discriminator = nn.Sequential(nn.Linear(16, 8), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(8, 1))


class MixtureOfExperts(nn.Module):
    """Each token goes to its two best experts; which, depends on the data."""

    def __init__(self, width: int = 6, experts: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width)) for _ in range(experts))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        mixed = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == index)
            if len(rows):
                mixed[rows] += weights[rows, place, None] * expert(x[rows])
        return self.head(x + mixed)


class BatchedExperts(nn.Module):
    """Experts as one tensor each for their two layers, all applied to every token."""

    def __init__(self, width: int = 6, hidden: int = 5, experts: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.gate = nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, width, hidden) * 0.3)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * 0.3)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        hidden = torch.bmm(x.expand(len(self.up), *x.shape), self.up).relu()
        mixed = torch.bmm(hidden, self.down) * self.gate(x).softmax(-1).t().unsqueeze(-1)
        return self.head(x + mixed.sum(0))


class WeightShared(nn.Module):
    """The same residual block again and again, and a decoder tied to the encoder."""

    def __init__(self, width: int = 7, steps: int = 3) -> None:
        super().__init__()
        self.steps = steps
        self.encode = nn.Linear(9, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 10)
        self.down = nn.Linear(10, width)
        self.bias = nn.Parameter(torch.zeros(9))

    def forward(self, x: Tensor) -> Tensor:
        state = self.encode(x)
        for _ in range(self.steps):
            state = state + self.down(torch.tanh(self.up(self.norm(state))))
        return F.linear(state, self.encode.weight.t(), self.bias)


class GraphConvolution(nn.Module):
    """Kipf and Welling's layer in plain torch, its weight (in, out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.4)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        return adj @ (x @ self.weight) + self.bias


class GNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GraphConvolution(5, 8), GraphConvolution(8, 6)
        self.attend = nn.Linear(6, 1, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        x = self.second(F.relu(self.first(x, adj)), adj)
        weights = torch.softmax(self.attend(torch.tanh(x)), dim=0)
        return self.head((weights * x).sum(0, keepdim=True))


class LSTMClassifier(nn.Module):
    """Two bidirectional layers over embedded tokens, the last states classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 5, padding_idx=0)
        self.lstm = nn.LSTM(5, 4, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embed(tokens))
        return self.head(torch.cat([hidden[-2], hidden[-1]], dim=-1))


def resnet() -> nn.Module:
    """Residual connections, in place, some by way of a convolution."""
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 6], "depths": [2, 2]}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, layer_type="basic", num_labels=5))


def convnext() -> nn.Module:
    """Depthwise 7x7, channels last, LayerScale."""
    sizes = {"patch_size": 4, "num_stages": 2, "hidden_sizes": [5, 6], "depths": [2, 1]}
    return transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**sizes, num_labels=4))


class EncoderClassifier(nn.Module):
    """nn.TransformerEncoder with a class token and learnt positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8) * 0.1)
        self.positions = nn.Parameter(torch.randn(1, 9, 8) * 0.1)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], dim=1)
        return self.head(self.encoder(x + self.positions[:, : x.shape[1]])[:, 0])


class Seq2Seq(nn.Module):
    """A GRU encoder, a GRU-cell decoder that attends to it, tokens fed back."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(12, width), nn.Embedding(11, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.cell = nn.GRUCell(2 * width, width)
        self.query = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, 11)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, hidden = self.encoder(self.source(source))
        hidden = hidden[0]
        outputs = []
        for step in range(target.shape[1]):
            scores = torch.einsum("bd,btd->bt", self.query(hidden), memory)
            context = torch.einsum("bt,btd->bd", scores.softmax(-1), memory)
            hidden = self.cell(torch.cat([self.target(target[:, step]), context], -1), hidden)
            outputs.append(self.out(hidden))
        return torch.stack(outputs, dim=1)


def _tokens(high: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randint(0, high, (3, 7)),)


def _images(channels: int, side: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(2, channels, side, side),)


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "unet": (UNet, _images(1, 16)),
    "efficientnet": (efficientnet, _images(3, 16)),
    "mixer": (MLPMixer, _images(3, 16)),
    "gan": (GAN, lambda: None),
    "experts": (MixtureOfExperts, lambda: (torch.randn(30, 5),)),
    "batched_experts": (BatchedExperts, lambda: (torch.randn(6, 4),)),
    "shared": (WeightShared, lambda: (torch.randn(4, 9),)),
    "gnn": (GNN, lambda: (torch.randn(7, 5), torch.rand(7, 7))),
    "lstm": (LSTMClassifier, _tokens(20)),
    "resnet": (resnet, _images(3, 32)),
    "convnext": (convnext, _images(3, 16)),
    "encoder": (EncoderClassifier, lambda: (torch.randn(2, 8, 3),)),
    "seq2seq": (Seq2Seq, lambda: (torch.randint(0, 12, (2, 5)), torch.randint(0, 11, (2, 4)))),
}
"""Name -> how to make the network, how to make its inputs (None: it has no forward of its own)."""
