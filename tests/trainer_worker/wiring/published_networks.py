"""The networks of the parity fixtures, built from their `meta`."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

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
}
