"""Checkpoints: the published `.pt` files in, this project's `.safetensors` in and out.

Our files hold the model's tensors under the names of `tensor_shapes`, and one metadata entry, `nowcast`: a JSON header
`{"format": 1, "name", "note", "context", "horizons", "options": {…}}`. Nothing is ever unpickled beyond what
`torch.load(weights_only=True)` admits.
"""

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from nowcast_server.nino.options import CheckpointError, ModelOptions, tensor_shapes

__all__ = ["Checkpoint", "CheckpointError", "load_checkpoint", "save_checkpoint"]

FORMAT: Final = 1
HEADER: Final = "nowcast"


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
    header = {
        "format": FORMAT,
        "name": checkpoint.name,
        "note": checkpoint.note,
        "context": options.context,
        "horizons": options.max_horizon,
        "options": asdict(options),
    }
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, str(path), metadata={HEADER: json.dumps(header)})


def _load_safetensors(path: Path) -> Checkpoint:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        header = _read_header(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is no mapping
    options = ModelOptions.from_dict(header.get("options"))
    return Checkpoint(options, _as_float32(tensors), str(header.get("name", path.stem)), str(header.get("note", "")))


def _read_header(metadata: Mapping[str, str]) -> dict[str, Any]:
    if HEADER not in metadata:
        raise CheckpointError(f"it has no {HEADER!r} header: it holds no model of this project", field="checkpoint")
    header = json.loads(metadata[HEADER])
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"this version of nowcast reads format {FORMAT} alone", field="format")
    return header


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
    ours = {tensor_name(name): tensor for name, tensor in tensors.items()}
    return Checkpoint(options, _as_float32(ours), path.stem, "published by the authors of arXiv 2409.04434")


def _as_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


_FIXED: Final[dict[str, tuple[Any, ...]]] = {
    "dms": (True,),
    "improved_graph": (True,),
    "edge_sample_ratio": (0, None),
    "pre_layers": (1,),
    "post_layers": (1,),
    "dropout": (0,),
    "act_first": (True, False),  # no normalisation stands between, so the order is the same
    "jk": (None,),
    "train_norm": (True, False),
    "input_layer": ("linear",),
}
"""Options of which these values are supported."""

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
"""Options that have one of ours for a counterpart, with the same meaning and default."""

_OTHERS: Final = {"gnn", "wte_pos_enc", "vocab_size", "chunk_size", "message_passing_device"}
"""Options that are looked at apart, or say how the published code runs, not what it computes."""
_VOCABULARY: Final = 50257

_TENSORS: Final = (
    (r"^layer_embed\.", "edge_type_embedding."),
    (r"^edge_proj\.fc\.", "edge_in."),
    (r"^node_proj\.fc\.", "node_in."),
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
        if name in _FIXED and value not in _FIXED[name]:
            raise CheckpointError(f"option {name} = {value!r} is not supported, only {_FIXED[name][0]!r}", field=name)
        if name in _NAMES:
            options[_NAMES[name]] = value
        elif name not in _FIXED and name not in _OTHERS:
            raise CheckpointError(f"unknown option {name!r} in model_args", field=name)
    options["graph"] = arguments.get("gnn", True) not in (False, None, "None", "none")
    words = options["graph"] and arguments.get("wte_pos_enc", True)
    options["vocabulary"] = arguments.get("vocab_size", _VOCABULARY) if words else 0
    # None stands for a number in the published arguments
    if "max_feat_size" in arguments and arguments["max_feat_size"] is None:
        options["slots"] = 1
    if not options["graph"]:
        options.pop("laplacian", None)
    return ModelOptions.from_dict(options)


def tensor_name(published: str) -> str:
    """Our name of a published tensor; the name itself if it is none of theirs."""
    return next((re.sub(pattern, ours, published) for pattern, ours in _TENSORS if re.match(pattern, published)), published)
