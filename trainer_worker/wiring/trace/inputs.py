"""Guess example inputs for a module from its signature and layers; they are tried until one works."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from itertools import chain, islice, product
from typing import Any

import torch
from torch import Tensor, nn

BATCH, STEPS = 2, 8
IMAGE_SIDES = (32, 28, 64, 16, 8, 96, 128, 224, 256, 299)
VOLUME_SIDES = (16, 32, 8)
LENGTHS = (8, 32, 128, 16, 64, 1000)
OTHER_SIZES = (*range(7, 1, -1), *range(9, 65), 1)  # where none of these fits; short ones first, as tables of positions end
LARGEST_STATED = 8192  # sizes beyond this are not believed
TRIES = 150  # guesses of each sort

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword ones


def guesses(module: nn.Module) -> Iterator[Arguments]:
    """Arguments worth trying, the likeliest first."""
    own = getattr(module, "dummy_inputs", None)
    if isinstance(own, dict) and own:
        yield (), own
    names = _required(module)
    if not names:
        yield (), {}
    width = next(_stated(module, _CONTEXT_WIDTHS), None)

    def named(chosen: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Any, ...]]:
        """Examples for the arguments; then for some of these what their names suggest."""
        for examples in chosen:
            yield examples
            suggested = tuple(_by_name(name, example, width) for name, example in zip(names, examples, strict=True))
            if any(value is not example for value, example in zip(suggested, examples, strict=True)):
                yield suggested

    count = len(names)
    few = list(islice(_examples(module, sides=1), 10)) if count > 1 else []
    mixtures = (chosen for chosen in product(few, repeat=count) if any(example is not chosen[0] for example in chosen))
    batches = ((Batch(example),) for example in _examples(module)) if count == 1 else iter(())
    for arguments in chain(
        named((example,) * count for example in islice(_examples(module), 40)),
        islice(named(mixtures), TRIES),
        islice(named((example,) * count for example in _odd_sizes(module)), TRIES),
        islice(batches, 20),
    ):
        yield arguments, {}


class Batch(dict[str, Any]):
    """A batch of named fields, whatever their names."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.example = example

    def __missing__(self, name: str) -> Any:
        return _by_name(name, self.example)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]


def _odd_sizes(module: nn.Module) -> Iterator[Tensor]:
    """The first example in other sizes: shorter and longer, smaller and larger, wider and narrower."""
    example = next(_examples(module), None)
    if example is None:
        return
    for size in OTHER_SIZES:
        if example.dim() > 3:
            yield torch.randn(*example.shape[:2], *(size,) * (example.dim() - 2))
        elif example.dim() == 3:
            yield torch.randn(*example.shape[:2], size)
            yield torch.randn(example.shape[0], size, example.shape[2])
        elif example.is_floating_point():
            yield torch.randn(BATCH, size, *example.shape[1:])
            yield torch.randn(BATCH, size)
        else:
            yield torch.randint(0, int(example.max()) + 1, (BATCH, size))


def _required(module: nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except ValueError:  # scripted modules have none to show
        return ["input"]
    optional = [item.name for item in parameters if item.kind in kinds][:1]
    if not optional and any(item.kind == inspect.Parameter.VAR_POSITIONAL for item in parameters):
        optional = ["input"]
    return [item.name for item in parameters if item.kind in kinds and item.default is item.empty] or optional


def _by_name(name: str, example: Tensor, width: int | None = None) -> Any:
    if width is not None and name in _CONTEXTS:
        return torch.randn(len(example), STEPS, width)
    suggested = (make for words, make in _NAMED if any(fnmatch(name, word) for word in words))
    return next(suggested, lambda _, example: example)(len(example), example)


# arguments that hold a second sequence, and what modules and their configurations call its width, or an image's side
_CONTEXTS = {"encoder_hidden_states", "context", "cond", "conditioning", "text_embeddings"}
_CONTEXT_WIDTHS = ("cross_attention_dim", "context_dim", "cond_dim", "encoder_hidden_size")
_SIDES = ("sample_size", "image_size", "img_size", "input_size", "input_resolution", "resolution")

_NAMED: tuple[tuple[set[str], Callable[[int, Tensor], Tensor]], ...] = (  # by name pattern: a value from (examples, one example)
    ({"*adj*"}, lambda rows, _: torch.ones(rows, rows) / rows),
    ({"edge_index", "edges"}, lambda rows, _: torch.stack([torch.arange(rows), torch.arange(rows).roll(1)])),
    ({"t", "time", "timestep", "timesteps"}, lambda rows, _: torch.arange(rows)),
    ({"batch", "batch_index"}, lambda rows, _: torch.zeros(rows, dtype=torch.long)),
    ({"*mask*"}, lambda _, example: torch.ones(example.shape[:2], dtype=torch.bool)),
    ({"*len*"}, lambda rows, example: torch.full((rows,), example.shape[1] if example.dim() > 1 else 1)),
    ({"ids", "tokens", "input_ids", "idx", "labels", "target", "targets", "y"}, lambda rows, _: torch.randint(0, 2, (rows, STEPS))),
)


def _examples(module: nn.Module, *, sides: int = 20) -> Iterator[Tensor]:
    """Tensors the module's layers would take, layer by layer in their order; images and the like in so many sizes."""
    stated = tuple(_stated(module, _SIDES))
    tables = [layer.num_embeddings for layer in module.modules() if isinstance(layer, (nn.Embedding, nn.EmbeddingBag))]
    known = (example for layer in module.modules() for example in _for_layer(layer, min(tables, default=2), stated, sides))
    # a layer that multiplies by parameters of its own takes one of their sizes
    own = (size for layer in module.modules() for each in layer.parameters(recurse=False) for size in each.shape[-2:])
    seen = set()
    for example in chain(known, chain.from_iterable(map(_features, own))):
        key = (example.shape, example.dtype)
        if key not in seen:
            seen.add(key)
            yield example


def _for_layer(layer: Any, words: int, stated: tuple[int, ...], sides: int) -> Iterator[Tensor]:
    match layer:
        case nn.Embedding() | nn.EmbeddingBag():
            yield torch.randint(0, words, (BATCH, STEPS))
            yield torch.randint(0, words, (BATCH,))
        case nn.Linear():
            yield from _features(layer.in_features)
        case nn.RNNBase() | nn.RNNCellBase():
            yield from reversed(list(_features(layer.input_size)))
        case nn.MultiheadAttention():
            yield torch.randn(BATCH, STEPS, layer.embed_dim)
        case nn.LayerNorm():
            yield torch.randn(BATCH, STEPS, *layer.normalized_shape)
        case _ if isinstance(features := getattr(layer, "num_features", None), int):
            yield from (torch.randn(BATCH, features, *(8,) * dims) for dims in range(4))
        case _ if isinstance(getattr(layer, "kernel_size", None), tuple) and hasattr(layer, "in_channels"):
            dims = len(layer.kernel_size)
            for side in islice((*stated, *(LENGTHS, IMAGE_SIDES, VOLUME_SIDES)[dims - 1]), sides):
                yield torch.randn(BATCH, layer.in_channels, *(side,) * dims)


def _stated(module: nn.Module, names: tuple[str, ...]) -> Iterator[int]:
    """Sizes that a module, its parts or their configurations state under one of some names, each once."""
    holders = [holder for part in module.modules() for holder in (part, getattr(part, "config", None)) if holder is not None]
    stated = (getattr(holder, name, None) for holder in holders for name in names)
    sizes = (size[-1] if isinstance(size, (tuple, list)) and size else size for size in stated)
    yield from dict.fromkeys(size for size in sizes if isinstance(size, int) and 0 < size <= LARGEST_STATED)


def _features(size: int) -> Iterator[Tensor]:
    yield torch.randn(BATCH, size)
    yield torch.randn(BATCH, STEPS, size)
