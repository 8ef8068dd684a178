"""The published NiNo checkpoints: their option names and tensor names in this project's terms."""

import re
from collections.abc import Mapping
from typing import Any, Final

from nowcast_server.nino.options import CheckpointError, ModelOptions

_RUN_TIME: Final = frozenset({"chunk_size", "message_passing_device"})
"""Options that say how the published code runs, not what it computes."""

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

_NAMES: Final = {
    "ctx": "context",
    "hid": "hidden",
    "layers": "layers",
    "towers": "towers",
    "seq_len": "max_horizon",
    "max_feat_size": "slots",
    "edge_types": "edge_types",
    "lpe": "laplacian",
    "act_name": "activation",
    "final_edge_update": "final_edge_update",
    "residual": "residual",
    "scale_method": "scaling",
    "upd_scale": "update_scale",
}
"""Options that have one of ours for a counterpart, with the same meaning and default."""

_SPECIAL: Final = frozenset({"gnn", "wte_pos_enc", "vocab_size"})
_VOCABULARY: Final = 50257

_TENSORS: Final = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"^layer_embed\.", "edge_type_embedding."),
        (r"^edge_proj\.fc\.", "edge_in."),
        (r"^node_proj\.fc\.", "node_in."),
        (r"^wte_pos_enc_layer\.", "word_embedding."),
        (r"^edge_mlp\.fc\.", "horizons_out."),
        (r"^edge_out\.fc\.", "edge_out."),
        (r"^gnn\.convs\.(\d+)\.edge_encoder\.", r"convs.\1.modulation."),
        (r"^gnn\.convs\.(\d+)\.pre_nns\.(\d+)\.0\.", r"convs.\1.pre.\2."),
        (r"^gnn\.convs\.(\d+)\.post_nns\.(\d+)\.0\.", r"convs.\1.post.\2."),
        (r"^gnn\.convs\.(\d+)\.lin\.", r"convs.\1.out."),
        (r"^gnn\.edge_update\.(\d+)\.lin_e\.", r"edge_updates.\1.edge."),
        (r"^gnn\.edge_update\.(\d+)\.lin_s\.", r"edge_updates.\1.source."),
        (r"^gnn\.edge_update\.(\d+)\.lin_t\.", r"edge_updates.\1.target."),
        (r"^gnn\.edge_update\.(\d+)\.lin1\.", r"edge_updates.\1.out."),
    )
)


def published_options(arguments: Mapping[str, Any]) -> ModelOptions:
    """Our options for the published `model_args`.

    Raises:
        CheckpointError: an option is unknown, or has a value that is not supported.
    """
    options: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in _FIXED and value not in _FIXED[name]:
            raise CheckpointError(f"option {name} = {value!r} is not supported, only {_FIXED[name][0]!r}", field=name)
        if name in _NAMES:
            options[_NAMES[name]] = value
        elif name not in _FIXED and name not in _RUN_TIME and name not in _SPECIAL:
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
    for pattern, ours in _TENSORS:
        if pattern.match(published):
            return pattern.sub(ours, published)
    return published
