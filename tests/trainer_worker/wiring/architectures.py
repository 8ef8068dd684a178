"""Networks as users write them, each with an example of its inputs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
import transformers
from torch import Tensor, nn


class Lambda(nn.Module):
    """A module of parts, and a function of it and its inputs."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.forward = partial(function, self)
        for name, part in parts.items():
            setattr(self, name, part)


def unet(width: int = 4) -> nn.Module:
    """Skip connections by concatenation, transposed convolutions."""

    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        first = m.down1(x)
        second = m.down2(F.max_pool2d(first, 2))
        x = m.bottom(F.max_pool2d(second, 2))
        x = m.join2(torch.cat([m.up2(x), second], dim=1))
        return m.head(m.join1(torch.cat([m.up1(x), first], dim=1)))

    down = {"down1": block(1, width), "down2": block(width, 2 * width), "bottom": block(2 * width, 4 * width)}
    up = {f"up{n}": nn.ConvTranspose2d(2 * n * width, n * width, 2, stride=2) for n in (2, 1)}
    join = {f"join{n}": block(2 * n * width, n * width) for n in (2, 1)}
    return Lambda(forward, **down, **up, **join, head=nn.Conv2d(width, 2, 1))


def mixer(tokens: int = 16, channels: int = 5) -> nn.Module:
    """Linear layers over tokens and over channels in turn."""

    def mix(m: nn.Module, x: Tensor) -> Tensor:
        x = x + m.tokens(m.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + m.channels(m.norm2(x))

    def block() -> nn.Module:
        norms = {"norm1": nn.LayerNorm(channels), "norm2": nn.LayerNorm(channels)}
        over = {
            name: nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))
            for name, size, hidden in (("tokens", tokens, 6), ("channels", channels, 7))
        }
        return Lambda(mix, **norms, **over)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(m.norm(m.blocks(m.embed(x).flatten(2).transpose(1, 2))).mean(1))

    blocks, norm = nn.Sequential(block(), block()), nn.LayerNorm(channels)
    return Lambda(forward, embed=nn.Conv2d(3, channels, 4, stride=4), blocks=blocks, norm=norm, head=nn.Linear(channels, 4))


class GAN(nn.Module):
    """Two networks in one module that has no forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.LeakyReLU(0.2), nn.Linear(8, 16), nn.Tanh())
        self.discriminator = nn.Sequential(nn.Linear(16, 8), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(8, 1))


def routed_experts(width: int = 6, experts: int = 4) -> nn.Module:
    """Each token goes to its two best experts; which, depends on the data."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.embed(x)
        weights, chosen = m.router(x).softmax(-1).topk(2, dim=-1)
        mixed = torch.zeros_like(x)
        for index, expert in enumerate(m.experts):
            rows, place = torch.where(chosen == index)
            if len(rows):
                mixed[rows] += weights[rows, place, None] * expert(x[rows])
        return m.head(x + mixed)

    each = nn.ModuleList(nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width)) for _ in range(experts))
    router = nn.Linear(width, experts, bias=False)
    return Lambda(forward, embed=nn.Linear(5, width), router=router, experts=each, head=nn.Linear(width, 3))


def batched_experts(width: int = 6, hidden: int = 5, experts: int = 3) -> nn.Module:
    """Experts as one tensor each for their two layers, all applied to every token."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.embed(x)
        mixed = torch.bmm(torch.bmm(x.expand(experts, *x.shape), m.up).relu(), m.down) * m.gate(x).softmax(-1).t().unsqueeze(-1)
        return m.head(x + mixed.sum(0))

    up, down = (nn.Parameter(torch.randn(experts, *shape) * 0.3) for shape in ((width, hidden), (hidden, width)))
    return Lambda(forward, embed=nn.Linear(4, width), gate=nn.Linear(width, experts), up=up, down=down, head=nn.Linear(width, 3))


def weight_shared(width: int = 7) -> nn.Module:
    """The same residual block again and again, and a decoder tied to the encoder."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        state = m.encode(x)
        for _ in range(3):
            state = state + m.down(torch.tanh(m.up(m.norm(state))))
        return F.linear(state, m.encode.weight.t(), m.bias)

    inside = {"norm": nn.LayerNorm(width), "up": nn.Linear(width, 10), "down": nn.Linear(10, width)}
    return Lambda(forward, encode=nn.Linear(9, width, bias=False), **inside, bias=nn.Parameter(torch.zeros(9)))


def gnn() -> nn.Module:
    """Kipf and Welling's layers in plain torch, their weights (in, out), and attention over nodes."""

    def layer(m: nn.Module, x: Tensor, adj: Tensor) -> Tensor:
        return adj @ (x @ m.weight) + m.bias

    def convolution(inputs: int, outputs: int) -> nn.Module:
        return Lambda(layer, weight=nn.Parameter(torch.randn(inputs, outputs) * 0.4), bias=nn.Parameter(torch.zeros(outputs)))

    def forward(m: nn.Module, x: Tensor, adj: Tensor) -> Tensor:
        x = m.second(F.relu(m.first(x, adj)), adj)
        return m.head((torch.softmax(m.attend(torch.tanh(x)), dim=0) * x).sum(0, keepdim=True))

    ends = {"attend": nn.Linear(6, 1, bias=False), "head": nn.Linear(6, 3)}
    return Lambda(forward, first=convolution(5, 8), second=convolution(8, 6), **ends)


def number_tokens(width: int = 6) -> nn.Module:
    """Every number of a table's row times a vector of its own (FT-Transformer), then layers over the vectors."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x.unsqueeze(-1) * m.scale + m.shift
        return m.head((x + m.down(torch.relu(m.up(x)))).mean(1))

    own = {name: nn.Parameter(torch.zeros(4, width)) for name in ("scale", "shift")}
    return Lambda(forward, **own, up=nn.Linear(width, 5), down=nn.Linear(5, width), head=nn.Linear(width, 3))


def lstm() -> nn.Module:
    """Two bidirectional layers over embedded tokens, the last states classified."""

    def forward(m: nn.Module, tokens: Tensor) -> Tensor:
        _, (hidden, _) = m.lstm(m.embed(tokens))
        return m.head(torch.cat([hidden[-2], hidden[-1]], dim=-1))

    layers = nn.LSTM(5, 4, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
    return Lambda(forward, embed=nn.Embedding(20, 5, padding_idx=0), lstm=layers, head=nn.Linear(8, 3))


def seq2seq(width: int = 6) -> nn.Module:
    """A GRU encoder, a GRU-cell decoder that attends to it, tokens fed back."""

    def forward(m: nn.Module, source: Tensor, target: Tensor) -> Tensor:
        memory, (hidden,) = m.encoder(m.source(source))
        outputs = []
        for step in range(target.shape[1]):
            scores = torch.einsum("bd,btd->bt", m.query(hidden), memory)
            context = torch.einsum("bt,btd->bd", scores.softmax(-1), memory)
            hidden = m.cell(torch.cat([m.target(target[:, step]), context], -1), hidden)
            outputs.append(m.out(hidden))
        return torch.stack(outputs, dim=1)

    tables = {"source": nn.Embedding(12, width), "target": nn.Embedding(11, width)}
    recurrent = {"encoder": nn.GRU(width, width, batch_first=True), "cell": nn.GRUCell(2 * width, width)}
    return Lambda(forward, **tables, **recurrent, query=nn.Linear(width, width, bias=False), out=nn.Linear(width, 11))


def hugging_face(name: str, **sizes: Any) -> Callable[[], nn.Module]:
    config = getattr(transformers, f"{name}Config")
    return lambda: getattr(transformers, f"{name}ForImageClassification")(config(**sizes, num_labels=5))


def _tokens(high: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randint(0, high, (3, 7)),)


def _images(channels: int, side: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(2, channels, side, side),)


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "unet": (unet, _images(1, 16)),
    "efficientnet": (  # expand, depthwise, squeeze and excite, project, add
        hugging_face(
            "EfficientNet", in_channels=[4], out_channels=[4], strides=[1], kernel_sizes=[5], num_block_repeats=[2], hidden_dim=8,
            width_coefficient=1 / 160, depth_coefficient=1.0, expand_ratios=[3], image_size=16,
        ),
        _images(3, 16),
    ),
    "mixer": (mixer, _images(3, 16)),
    "style": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.InstanceNorm2d(5, affine=True), nn.Conv2d(5, 2, 3)), _images(3, 16)),
    "gan": (GAN, lambda: None),
    "experts": (routed_experts, lambda: (torch.randn(30, 5),)),
    "batched_experts": (batched_experts, lambda: (torch.randn(6, 4),)),
    "shared": (weight_shared, lambda: (torch.randn(4, 9),)),
    "gnn": (gnn, lambda: (torch.randn(7, 5), torch.rand(7, 7))),
    "numbers": (number_tokens, lambda: (torch.randn(5, 4),)),
    "lstm": (lstm, _tokens(20)),
    # residual connections, in place, some by way of a convolution; depthwise 7x7, channels last, LayerScale
    "resnet": (hugging_face("ResNet", embedding_size=4, hidden_sizes=[4, 6], depths=[2, 2], layer_type="basic"), _images(3, 32)),
    "convnext": (hugging_face("ConvNext", patch_size=4, num_stages=2, hidden_sizes=[5, 6], depths=[2, 1]), _images(3, 16)),
    "seq2seq": (seq2seq, lambda: (torch.randint(0, 12, (2, 5)), torch.randint(0, 11, (2, 4)))),
}  # fmt: skip
"""Name -> how to make the network, how to make its inputs (None: it has no forward of its own)."""
