"""The networks of the parity fixtures, built from their `meta`."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


def build(meta: dict[str, Any]) -> nn.Module:
    """A network of the fixture's family and sizes, freshly initialised."""
    return _BUILDERS[meta["family"]](meta)


class _Named(nn.Module):
    """A sequence under the attribute name the fixture's parameters carry."""

    def __init__(self, name: str, net: nn.Sequential) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, net)

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(x)


def _mlp(meta: dict[str, Any]) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(meta["dims"]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _conv(meta: dict[str, Any]) -> nn.Module:
    layers: list[nn.Module] = []
    channels = [meta["in_channels"], *meta["hid"]]
    for index, (inputs, outputs) in enumerate(pairwise(channels)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2 if index == 0 else 1, padding=0 if index == 0 else 1), nn.ReLU()]
    return _Named("fc", nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], meta["classes"])))


def _conv_bn(meta: dict[str, Any]) -> nn.Module:
    layers: list[nn.Module] = []
    channels = meta["channels"]
    for index, (inputs, outputs) in enumerate(pairwise(channels)):
        bias = index > 0 or meta["first_conv_bias"]
        layers += [nn.Conv2d(inputs, outputs, 3, bias=bias), nn.BatchNorm2d(outputs), nn.ReLU()]
    return _Named("net", nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], meta["classes"])))


class _VisionTransformer(nn.Module):
    """torchvision's layout in plain torch."""

    def __init__(self, meta: dict[str, Any]) -> None:
        super().__init__()
        width, tokens = meta["hidden_dim"], (meta["image_size"] // meta["patch_size"]) ** 2 + 1
        self.conv_proj = nn.Conv2d(3, width, meta["patch_size"], meta["patch_size"])
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        layers = (self._layer(width, meta["num_heads"], meta["mlp_dim"]) for _ in range(meta["num_layers"]))
        self.encoder.layers = nn.Sequential(OrderedDict((f"encoder_layer_{index}", layer) for index, layer in enumerate(layers)))
        self.encoder.ln = nn.LayerNorm(width)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(width, meta["num_classes"])))

    @staticmethod
    def _layer(width: int, heads: int, mlp: int) -> nn.Module:
        layer = nn.Module()
        layer.ln_1 = nn.LayerNorm(width)
        layer.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        layer.ln_2 = nn.LayerNorm(width)
        layer.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Dropout(0.0), nn.Linear(mlp, width), nn.Dropout(0.0))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.encoder.pos_embedding
        for layer in self.encoder.layers:
            y = layer.ln_1(x)
            x = x + layer.self_attention(y, y, y, need_weights=False)[0]
            x = x + layer.mlp(layer.ln_2(x))
        return self.heads(self.encoder.ln(x)[:, 0])


def _hugging_face(config: str, model: str) -> Callable[[dict[str, Any]], nn.Module]:
    def make(meta: dict[str, Any]) -> nn.Module:
        import transformers

        sizes = {key: value for key, value in meta.items() if key not in {"family", "head"}}
        return getattr(transformers, meta.get("head", model))(getattr(transformers, config)(**sizes))

    return make


_BUILDERS = {
    "mlp": _mlp,
    "conv": _conv,
    "conv_bn": _conv_bn,
    "gpt2": _hugging_face("GPT2Config", "GPT2LMHeadModel"),
    "llama": _hugging_face("LlamaConfig", "LlamaForCausalLM"),
    "bert": _hugging_face("BertConfig", "BertForMaskedLM"),
    "torchvision_vit": _VisionTransformer,
    "qwen3": _hugging_face("Qwen3Config", "Qwen3ForCausalLM"),
}
