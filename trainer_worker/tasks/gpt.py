"""A small GPT in plain torch: learned positions, layers normalised before each part, output weights tied to the embedding."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

INIT_STD = 0.02


class Attention(nn.Module):
    """Causal self-attention with queries, keys and values in one product.

    Shapes: (batch, length, width) -> the same
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        joined = self.c_attn(hidden).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = joined.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, width / heads)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: Tensor = self.c_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return projected


class FeedForward(nn.Module):
    """Two layers, four times as wide in between.

    Shapes: (batch, length, width) -> the same
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        projected: Tensor = self.c_proj(functional.gelu(self.c_fc(hidden), approximate="tanh"))
        return projected


class Layer(nn.Module):
    """Attention and feed-forward, each added to the residual stream.

    Shapes: (batch, length, width) -> the same
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.ln_1(hidden))
        added: Tensor = hidden + self.mlp(self.ln_2(hidden))
        return added


class GPT(nn.Module):
    """GPT-2's architecture (Radford et al. 2019); its parameters' names too.

    Args:
        vocabulary: number of tokens.
        context: longest input.
        layers, width, heads: sizes.

    Shapes: (batch, length) int64 -> (batch, length, vocabulary), length <= context
    """

    def __init__(self, *, vocabulary: int, context: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(context, width)
        self.h = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.apply(_initialise)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # the residual stream's variance must not grow with the depth
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * layers))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.h:
            hidden = layer(hidden)
        return functional.linear(self.ln_f(hidden), self.wte.weight)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
