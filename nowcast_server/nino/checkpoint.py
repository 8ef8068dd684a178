"""Checkpoints of NiNo and WNN: the published `.pt` files in, this project's `.safetensors` in and out.

Our files hold the model's tensors under the names of `tensor_shapes`, and one metadata entry, `nowcast`: a JSON header
`{"format": 1, "name", "note", "context", "horizons", "options": {…}}`. Nothing is ever unpickled beyond what
`torch.load(weights_only=True)` admits.
"""

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Self

import torch
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from protos.errors import NowcastError
from protos.wiring import MAX_SLOTS

FORMAT: Final = 1
HEADER: Final = "nowcast"
WNN_LAYERS: Final = 4
EDGE_TYPES: Final = 15  # rows of the edge type embedding: every `EdgeType`, and one that is never used
EPSILON: Final = 1e-6  # added to a scale before dividing by it, never when multiplying back, as the published models were trained


class CheckpointError(NowcastError):
    """The file is not a checkpoint of this project's models; the detail names the option or tensor, and what to do."""

    code, status, title = "bad_checkpoint", 500, "The checkpoint cannot be used"


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class ModelOptions:
    """Options of one model, as in a checkpoint's header; within bounds, or a hundred bytes could ask for all of the memory."""

    graph: bool = True  # True for NiNo (a graph network), False for WNN (an MLP for each parameter alone)
    context: Annotated[int, Field(ge=2, le=1000)] = 5  # snapshots c a forecast is made from
    max_horizon: Annotated[int, Field(ge=1, le=100_000)] = 40  # horizons K the model gives, 1..K
    hidden: Annotated[int, Field(ge=1, le=100_000)] = 128  # width H
    # message-passing layers of NiNo. The last one updates no edges, so it reaches no forecast.
    layers: Annotated[int, Field(ge=1, le=100)] = 3
    slots: Annotated[int, Field(ge=1, le=1000)] = MAX_SLOTS  # the most weights an edge may carry, 9 for 3x3 kernels
    laplacian: Annotated[int, Field(ge=1, le=256)] = 8  # Laplacian features of a neuron
    vocabulary: Annotated[int, Field(ge=0, le=10_000_000)] = 0  # word positions that are embedded as node features; 0 for none

    @property
    def width_in(self) -> int:
        """Numbers that enter for one edge: every slot's context for NiNo, one parameter's for WNN."""
        return self.context * (self.slots if self.graph else 1)

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read the options by name. A CheckpointError names the one that is not supported."""
        if not isinstance(data, dict):
            raise CheckpointError("the options must be an object", field="options")
        for name, value in _FIXED.items():
            if data.get(name, value) != value:
                raise CheckpointError(f"option {name} = {data[name]!r}: only {value!r} is supported", field=name)
        try:
            return cls(**{name: value for name, value in data.items() if name not in _FIXED})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            if first["type"] == "unexpected_keyword_argument":
                detail = f"unknown option {name!r}: a newer version of nowcast may read this file"
            else:
                detail = f"option {name} = {data[name]!r}: {first['msg']}"
            raise CheckpointError(detail, field=name) from None


_FIXED: Final = {  # options of the published code, and of files written before 0.2, that every checkpoint leaves as they are
    "edge_types": EDGE_TYPES,
    "activation": "silu",
    "input_layers": 1,
    "towers": 1,
    "final_edge_update": False,
    "residual": True,
    "scaling": "std",
    "update_scale": 1.0,
}


def tensor_shapes(options: ModelOptions) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's tensors, known without building it."""
    hidden = options.hidden
    shapes: dict[str, tuple[int, ...]] = {"edge_type_embedding.weight": (EDGE_TYPES, hidden)}

    def linear(name: str, width_in: int, width_out: int) -> None:
        shapes.update({f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)})

    def mlp(name: str, *widths: int) -> None:
        for index, (width_in, width_out) in enumerate(pairwise(widths)):
            linear(f"{name}.{2 * index}", width_in, width_out)  # odd positions hold the activations

    mlp("edge_in", options.width_in, hidden)
    if not options.graph:
        mlp("horizons_out", *[hidden] * WNN_LAYERS, options.max_horizon)
        return shapes
    mlp("node_in", options.laplacian, hidden)
    if options.vocabulary:
        shapes["word_embedding.weight"] = (options.vocabulary + 1, hidden)
    for layer in range(options.layers):
        linear(f"convs.{layer}.modulation", hidden, 2 * hidden)
        for part in ("pre", "post"):
            linear(f"convs.{layer}.{part}.0", 2 * hidden, hidden)
        linear(f"convs.{layer}.out", hidden, hidden)
    for layer in range(options.layers - 1):
        for name in ("edge", "source", "target", "out"):
            linear(f"edge_updates.{layer}.{name}", hidden, hidden)
    mlp("edge_out", hidden, hidden, options.slots * options.max_horizon)
    return shapes


@dataclass(frozen=True)
class Checkpoint:
    """A model's weights and what they mean. A CheckpointError names a tensor that is missing, superfluous or wrong."""

    options: ModelOptions  # what the model is made of
    tensors: Mapping[str, Tensor]  # float32 weights on the CPU, named as in `tensor_shapes(options)`. Not to be written to.
    name: str  # what the weights are called
    note: str = ""  # how they were trained, in a sentence or two

    def __post_init__(self) -> None:
        shapes = tensor_shapes(self.options)
        for name, shape in shapes.items():
            if name not in self.tensors:
                raise CheckpointError(f"tensor {name!r} is missing: the file is incomplete or its options are wrong", field=name)
            tensor = self.tensors[name]
            if tuple(tensor.shape) != shape:
                detail = f"tensor {name!r} has the shape {tuple(tensor.shape)}, its options imply {shape}"
                raise CheckpointError(detail, field=name)
            if tensor.dtype != torch.float32 or not tensor.isfinite().all():
                raise CheckpointError(f"tensor {name!r} must hold finite floating point numbers", field=name)
        for name in self.tensors.keys() - shapes.keys():
            raise CheckpointError(f"tensor {name!r} has no place in a model with these options", field=name)

    @property
    def size(self) -> int:
        """How many weights there are."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a published `.pt` or one of our `.safetensors`; the content says which it is. A CheckpointError names the file."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
        return _load_safetensors(path) if start[8:9] == b"{" else _load_published(path)
    except ImportError:  # the installation is at fault, not the file
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.detail}", field=error.field) from error
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror or error}", field="checkpoint") from error
    except Exception as error:  # a file made to, or damaged, can make the libraries that read it raise nearly anything
        raise CheckpointError(f"{path}: holds no checkpoint: {type(error).__name__}: {error}", field="checkpoint") from error


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write `checkpoint` as `.safetensors` with its header."""
    from safetensors.torch import save_file

    options = checkpoint.options
    header = {"format": FORMAT, "name": checkpoint.name, "note": checkpoint.note, "options": asdict(options)}
    header |= {"context": options.context, "horizons": options.max_horizon}  # for other tools
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, str(path), metadata={HEADER: json.dumps(header)})


def _load_safetensors(path: Path) -> Checkpoint:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        if (text := (file.metadata() or {}).get(HEADER)) is None:
            raise CheckpointError(f"it has no {HEADER!r} header: it holds no model of this project", field="checkpoint")
        header = json.loads(text)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise CheckpointError(f"this version of nowcast reads format {FORMAT} alone", field="format")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is no mapping
    options = ModelOptions.from_dict(header.get("options"))
    return Checkpoint(options, _as_float32(tensors), str(header.get("name", path.stem)), str(header.get("note", "")))


def _load_published(path: Path) -> Checkpoint:
    try:
        # the published training script stores its arguments too; a Namespace is as inert as a dict
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything for a file that is not its own
        raise CheckpointError("this is neither a .safetensors nor a published .pt checkpoint", field="checkpoint") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"it holds a {type(content).__name__}, not a state_dict", field="checkpoint")
    tensors = content.get("state_dict", content)
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError("it holds no state_dict of a NiNo model", field="state_dict")
    options = published_options(content.get("model_args", {}) if "state_dict" in content else {})
    ours = {_tensor_name(name): tensor for name, tensor in tensors.items()}
    return Checkpoint(options, _as_float32(ours), path.stem, "published by the authors of arXiv 2409.04434")


def _as_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


_PUBLISHED: Final[dict[str, tuple[Any, ...]]] = {  # the values that are supported of options, by name
    **dict.fromkeys(("dms", "improved_graph"), (True,)),
    **dict.fromkeys(("pre_layers", "post_layers"), (1,)),
    "edge_sample_ratio": (0, None),
    "dropout": (0,),
    "jk": (None,),
    "input_layer": ("linear",),
}

# options that have one of ours for a counterpart, with the same meaning and default
_NAMES: Final = {name: name for name in ("layers", "towers", "edge_types", "final_edge_update", "residual")} | {
    "ctx": "context",
    "hid": "hidden",
    "seq_len": "max_horizon",
    "max_feat_size": "slots",
    "lpe": "laplacian",
    "act_name": "activation",
    "scale_method": "scaling",
    "upd_scale": "update_scale",
}

# options that are looked at apart, or do not change what is computed
_OTHERS: Final = {"gnn", "wte_pos_enc", "vocab_size", "chunk_size", "message_passing_device", "train_norm", "act_first"}

_TENSORS: Final = (
    (r"^layer_embed\.", "edge_type_embedding."),
    (r"^(edge|node)_proj\.fc\.", r"\1_in."),
    (r"^wte_pos_enc_layer\.", "word_embedding."),
    (r"^edge_mlp\.fc\.", "horizons_out."),
    (r"^edge_out\.fc\.", "edge_out."),
    (r"^gnn\.convs\.(\d+)\.edge_encoder\.", r"convs.\1.modulation."),
    (r"^gnn\.convs\.(\d+)\.(pre|post)_nns\.(\d+)\.0\.", r"convs.\1.\2.\3."),
    (r"^gnn\.convs\.(\d+)\.lin\.", r"convs.\1.out."),
    (r"^gnn\.edge_update\.(\d+)\.lin_e\.", r"edge_updates.\1.edge."),
    (r"^gnn\.edge_update\.(\d+)\.lin_s\.", r"edge_updates.\1.source."),
    (r"^gnn\.edge_update\.(\d+)\.lin_t\.", r"edge_updates.\1.target."),
    (r"^gnn\.edge_update\.(\d+)\.lin1\.", r"edge_updates.\1.out."),
)


def published_options(arguments: Mapping[str, Any]) -> ModelOptions:
    """Our options for the published `model_args`. A CheckpointError names the one that is not supported."""
    options: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in _PUBLISHED and value not in _PUBLISHED[name]:
            raise CheckpointError(f"option {name} = {value!r} is not supported, only {_PUBLISHED[name][0]!r}", field=name)
        if name in _NAMES:
            options[_NAMES[name]] = value
        elif name not in _PUBLISHED and name not in _OTHERS:
            raise CheckpointError(f"unknown option {name!r} in model_args", field=name)
    options["graph"] = arguments.get("gnn", True) not in (False, None, "None", "none")
    words = options["graph"] and arguments.get("wte_pos_enc", True)
    options["vocabulary"] = arguments.get("vocab_size", 50257) if words else 0
    if options.get("slots", 1) is None:
        options["slots"] = 1
    if not options["graph"]:
        options.pop("laplacian", None)
    return ModelOptions.from_dict(options)


def _tensor_name(published: str) -> str:
    return next((re.sub(pattern, ours, published) for pattern, ours in _TENSORS if re.match(pattern, published)), published)
