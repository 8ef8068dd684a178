"""Named families of transformers, wired as the published graphs are.

Where the published code has a graph class (GPT-2, Llama, Qwen3, BERT, torchvision's ViT) its graph is drawn edge for edge, oddities
included, since that is what its checkpoints are run on:

- embeddings are laid along the wrong edges (all but GPT-2's): `Reader`;
- key biases attach to the layer's inputs, because key edges run backwards: `Attention.key_bias`;
- with shared key-value heads, keys take the first query neurons and the output layer starts from the last of query and value
  neurons: `Attention`;
- Llama's norms attach to the end of the layer they stand at the beginning of, in parameter order: `tables.LLAMA`;
- Llama's up projection starts from a second copy of the block's inputs: `Reader.mlp_up`;
- Qwen3's norms within heads join the first head's neurons to the second's: `Attention.query_gain`;
- BERT's output bias points from the vocabulary to one neuron: `Reader.word_bias`;
- GPT-2's untied output layer is read the wrong way round: `Reader.unturned_head`.

Llama with attention biases is the exception: there the published residual connections miss their neurons by one, and ours do not.
Relatives the published code does not know (Mistral, Qwen2, RoBERTa, Hugging Face's ViT, nanoGPT) are drawn alike but for the first
three, so that every symmetry of the network is one of its graph.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from protos.wiring import Parameter, Wiring
from trainer_worker.wiring.canvas import Canvas
from trainer_worker.wiring.families.reader import Reader
from trainer_worker.wiring.families.roles import Layout
from trainer_worker.wiring.families.tables import BERT, GPT2, HUGGING_FACE_VIT, LLAMA, NANOGPT, TORCHVISION_VIT, Family


@dataclass(frozen=True)
class Kin:
    """The family a model belongs to and what cannot be read off its parameters."""

    family: Family
    layout: Layout


_PUBLISHED = {"gpt2", "llama", "qwen3", "bert"}
"""Model types the published code has a graph for; their relatives are drawn alike but for its oddities."""

_SCRAMBLED = _PUBLISHED - {"gpt2"}
"""Model types whose embeddings the published code scrambles."""

_BY_MODEL_TYPE = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "vit": HUGGING_FACE_VIT,
}


def wire_family(model: nn.Module, parameters: tuple[Parameter, ...], *, heads: bool) -> tuple[str, Wiring] | None:
    """The family's name and the wiring, if every parameter of the model has its place in one."""
    for kin in _kin(model):
        roles = kin.family.assign(parameters)
        if roles is not None:
            return kin.family.name, Reader(Canvas(parameters), kin.layout, draw_heads=heads).read(roles)
    return None


def _kin(model: nn.Module) -> Iterator[Kin]:
    """Families the model may belong to, by what it or what it wraps (compiled, data parallel) says of itself."""
    for module in _unwrap(model):
        for recognise in (_hugging_face, _nanogpt, _torchvision_vit):
            kin = recognise(module)
            if kin is not None:
                yield kin


def _unwrap(model: nn.Module) -> Iterator[nn.Module]:
    yield model
    children = list(model.children())
    while len(children) == 1:
        yield children[0]
        children = list(children[0].children())


def _hugging_face(model: nn.Module) -> Kin | None:
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", "")
    family = _BY_MODEL_TYPE.get(kind)
    heads = getattr(config, "num_attention_heads", None)
    if family is None or not isinstance(heads, int):
        return None
    shared = getattr(config, "num_key_value_heads", None) or heads
    return Kin(family, Layout(heads, shared, turned=family.turned, exact=kind in _PUBLISHED, scrambled=kind in _SCRAMBLED))


def _nanogpt(model: nn.Module) -> Kin | None:
    heads = _attribute(model, "n_head", lambda module: hasattr(module, "c_attn"))
    return Kin(NANOGPT, Layout(heads, heads)) if heads else None


def _torchvision_vit(model: nn.Module) -> Kin | None:
    heads = _attribute(model, "num_heads", lambda module: hasattr(module, "in_proj_weight"))
    return Kin(TORCHVISION_VIT, Layout(heads, heads, exact=True, scrambled=True)) if heads and hasattr(model, "conv_proj") else None


def _attribute(model: nn.Module, name: str, chosen: Callable[[Any], bool]) -> int:
    """The integer attribute of the first submodule that is chosen, 0 where there is none."""
    values = (getattr(module, name, 0) for module in model.modules() if chosen(module))
    return next((value for value in values if isinstance(value, int)), 0)
