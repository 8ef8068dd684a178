"""Small networks for meta-training, described by a `Design`: a few numbers from which anyone can build them again."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["convnet", "mlp", "gpt"]
Norm = Literal["none", "batch", "layer"]
INITIAL_STD: Final = 0.02
ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """One network.

    Args:
        kind: convnet (batch, 1, size, size), mlp (batch, inputs) or gpt (batch, tokens) in.
        inputs: channels, features, or the vocabulary.
        outputs: classes or values; a gpt's outputs are its vocabulary.
        widths: channels of each convolution, neurons of each hidden layer, or a gpt's width once for each layer.
        strides: of each convolution.
        pooled: whether a 2x2 mean pooling follows each convolution.
        norm: after each hidden layer; a gpt always has layer norms.
        activation: one of `ACTIVATIONS`.
        heads: of a gpt.
        tokens: the longest text a gpt takes.
        gain: factor on the initial weights of matrices and kernels.
    """

    kind: Kind
    inputs: int
    outputs: int
    widths: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pooled: tuple[bool, ...] = ()
    norm: Norm = "none"
    activation: str = "relu"
    heads: int = 1
    tokens: int = 0
    gain: float = 1.0

    def build(self) -> nn.Module:
        """The network, its weights drawn from torch's global generator."""
        network = {"convnet": _convnet, "mlp": _mlp, "gpt": Gpt}[self.kind](self)
        if self.gain != 1.0:
            with torch.no_grad():
                for parameter in network.parameters():
                    if parameter.ndim > 1:
                        parameter.mul_(self.gain)
        return network

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read `to_dict`'s form back from JSON."""
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        return cls(**values)


class MeanPool(nn.Module):
    """Global average pooling. `AdaptiveAvgPool2d` has no batching rule under `torch.func.vmap`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation in training, without running statistics: training never reads them, and vmap cannot write them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        scale = self.weight * (variance + self.eps).rsqrt()
        return x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]


def _convnet(design: Design) -> nn.Module:
    layers: list[nn.Module] = []
    channels = design.inputs
    for width, stride, pooled in zip(design.widths, design.strides, design.pooled, strict=True):
        layers.append(nn.Conv2d(channels, width, 3, stride=stride, padding=0 if stride > 1 else 1, bias=design.norm == "none"))
        if design.norm == "batch":
            layers.append(BatchNorm(width))
        layers.append(ACTIVATIONS[design.activation]())
        if pooled:
            layers.append(nn.AvgPool2d(2))
        channels = width
    return nn.Sequential(*layers, MeanPool(), nn.Linear(channels, design.outputs))


def _mlp(design: Design) -> nn.Module:
    layers: list[nn.Module] = []
    inputs = design.inputs
    for width in design.widths:
        layers.append(nn.Linear(inputs, width))
        if design.norm == "layer":
            layers.append(nn.LayerNorm(width))
        layers.append(ACTIVATIONS[design.activation]())
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, design.outputs))


class Gpt(nn.Module):
    """GPT-2 with tied embeddings: the function and the parameters, by name, order and shape, of Hugging Face's `GPT2LMHeadModel`
    with no dropout, in the few operations that `torch.func.vmap` batches well.

    Shapes: (batch, tokens) int64 -> (batch, tokens, vocabulary)
    """

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.transformer = _Transformer(design)

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.transformer
        x = functional.embedding(tokens, parts.wte.weight) + parts.wpe.weight[: tokens.shape[-1]]
        for block in parts.h:
            x = block(x)
        return functional.linear(parts.ln_f(x), parts.wte.weight)


class _Transformer(nn.Module):
    def __init__(self, design: Design) -> None:
        super().__init__()
        width, layers = design.widths[0], len(design.widths)
        self.wte = nn.Embedding(design.inputs, width)
        self.wpe = nn.Embedding(design.tokens, width)
        self.h = nn.ModuleList(_Block(width, heads=design.heads, layers=layers) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        for embedding in (self.wte, self.wpe):
            nn.init.normal_(embedding.weight, std=INITIAL_STD)


class _Transposed(nn.Module):
    """A linear layer whose weight lies (inputs, outputs), as GPT-2's do."""

    def __init__(self, inputs: int, outputs: int, *, std: float = INITIAL_STD) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * std)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class _Block(nn.Module):
    def __init__(self, width: int, *, heads: int, layers: int) -> None:
        super().__init__()
        std = INITIAL_STD / math.sqrt(2 * layers)
        self.ln_1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads=heads, std=std)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width, std=std)

    def forward(self, x: Tensor) -> Tensor:
        x = x + cast("Tensor", self.attn(self.ln_1(x)))
        return x + cast("Tensor", self.mlp(self.ln_2(x)))


class _Attention(nn.Module):
    def __init__(self, width: int, *, heads: int, std: float) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = _Transposed(width, 3 * width)
        self.c_proj = _Transposed(width, width, std=std)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        shape = (batch, tokens, self.heads, width // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in cast("Tensor", self.c_attn(x)).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        future = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
        mixed = (scores.masked_fill(future, -math.inf).softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width)
        return cast("Tensor", self.c_proj(mixed))


class _Mlp(nn.Module):
    def __init__(self, width: int, *, std: float) -> None:
        super().__init__()
        self.c_fc = _Transposed(width, 4 * width)
        self.c_proj = _Transposed(4 * width, width, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh")))
