"""Checkpoints: ours out and in again, the published ones in, everything else refused with a reason."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import random_checkpoint
from safetensors.torch import save_file

from nowcast_server.nino.checkpoint import (
    Checkpoint,
    CheckpointError,
    ModelOptions,
    load_checkpoint,
    published_options,
    save_checkpoint,
)

SMALL = {"hidden": 4, "layers": 2, "max_horizon": 3, "slots": 2}


def test_headers_of_older_files_are_read(tmp_path: Path) -> None:
    """Weights whose headers name options that were given up, or shipped as float16, would be refused, or others be misread."""
    tensors = {name: tensor.half() for name, tensor in random_checkpoint(**SMALL).tensors.items()}
    path = tmp_path / "a.safetensors"
    for scaling in ("std", "std-param"):
        header = {"format": 1, "options": {**SMALL, "residual": True, "update_scale": 1.0, "scaling": scaling}}
        save_file(tensors, path, metadata={"nowcast": json.dumps(header)})
        if scaling == "std":
            found = load_checkpoint(path)
            assert found.options == ModelOptions(**SMALL)
            assert all(tensor.dtype == torch.float32 for tensor in found.tensors.values())
        else:
            with pytest.raises(CheckpointError, match="only 'std' is supported"):
                load_checkpoint(path)


@pytest.mark.parametrize("options", [SMALL, {"graph": False, "hidden": 4}, {**SMALL, "vocabulary": 5}])
def test_what_is_saved_is_loaded(options: dict[str, Any], tmp_path: Path) -> None:
    """Weights that meta-training made would be lost or changed; or another tool could not tell what the file is."""
    made = random_checkpoint(**options)
    checkpoint = Checkpoint(made.options, made.tensors, "x", "2 hours")
    save_checkpoint(checkpoint, tmp_path / "a.safetensors")
    found = load_checkpoint(tmp_path / "a.safetensors")
    assert (found.options, found.name, found.note) == (checkpoint.options, "x", "2 hours")
    assert found.tensors.keys() == made.tensors.keys()
    assert all(torch.equal(tensor, made.tensors[name]) for name, tensor in found.tensors.items())
    raw = (tmp_path / "a.safetensors").read_bytes()
    header = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["nowcast"])
    assert [header[name] for name in ("format", "name", "context", "horizons")] == [1, "x", 5, made.options.max_horizon]
    assert header["options"]["hidden"] == 4


PUBLISHED = {
    "layer_embed.weight": (15, 4),
    "edge_proj.fc.0.weight": (4, 5),
    "edge_proj.fc.0.bias": (4,),
    **{f"edge_mlp.fc.{layer}.weight": (4, 4) for layer in (0, 2, 4)},
    **{f"edge_mlp.fc.{layer}.bias": (4,) for layer in (0, 2, 4)},
    "edge_mlp.fc.6.weight": (40, 4),
    "edge_mlp.fc.6.bias": (40,),
}


def test_what_the_published_training_script_saves(tmp_path: Path) -> None:
    """Weights made with the published code, whose files hold arguments and losses, would be refused; or get other defaults."""
    arguments = {"gnn": False, "hid": 4, "chunk_size": 7, "message_passing_device": "cuda"}
    others = {"step": 10, "config": argparse.Namespace(lr=1e-3), "losses": [0.1]}
    tensors = {name: torch.ones(shape) for name, shape in PUBLISHED.items()}
    torch.save({"state_dict": tensors, "model_args": arguments, **others}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt").options.hidden == 4
    torch.save({"edge_proj.fc.0.weight": torch.ones(128, 45)}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, check=lambda error: error.field == "edge_type_embedding.weight"):
        load_checkpoint(tmp_path / "b.pt")
    options = published_options({})
    assert (options.graph, options.vocabulary, options.hidden, options.laplacian, options.slots) == (True, 50257, 128, 8, 9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("edge_in.0.bias", None, id="missing"),
        pytest.param("edge_in.0.bias", torch.ones(3), id="shape"),
        pytest.param("edge_in.9.bias", torch.ones(3), id="extra"),
        pytest.param("edge_in.0.bias", torch.full((4,), torch.nan), id="nan"),
        pytest.param("edge_in.0.bias", torch.ones(4, dtype=torch.int64), id="integers"),
    ],
)
def test_wrong_tensors_are_named(name: str, value: torch.Tensor | None) -> None:
    """A wrong checkpoint would fail at the first forecast, in the middle of someone's training."""
    tensors = {**random_checkpoint(**SMALL).tensors, name: value}
    with pytest.raises(CheckpointError, check=lambda error: (error.field, error.code) == (name, "bad_checkpoint")):
        Checkpoint(ModelOptions(**SMALL), {key: tensor for key, tensor in tensors.items() if tensor is not None}, "x")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"not a checkpoint at all", b"\x00" * 64, b"\xff\xff\xff\xff\x00\x00\x00\x00{", b"PK\x03\x04rubbish"]
)
def test_files_that_are_no_checkpoints(content: bytes, tmp_path: Path) -> None:
    """`--checkpoint` with a wrong file would end in a traceback."""
    (tmp_path / "a.safetensors").write_bytes(content)
    for path in (tmp_path / "a.safetensors", tmp_path, tmp_path / "missing.pt"):
        with pytest.raises(CheckpointError, match="No such file" if path.name == "missing.pt" else None):
            load_checkpoint(path)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "not json",
        json.dumps([]),
        json.dumps({"format": 2, "options": {}}),
        json.dumps({"format": 1}),
        json.dumps({"format": 1, "options": {"hidden": 4, "flux": 1}}),
        json.dumps({"format": 1, "options": {"hidden": True}}),
        '{"format": 1, "options": {"layers": 1000000}}',
        '{"format": 1, "options": {"hidden": 1000000}}',
        '{"format": 1, "options": {"update_scale": NaN}}',
        '{"format": 1, "options": {"hidden": ' + "9" * 5000 + "}}",
        '{"format": 1, "options": ' + "[" * 20_000 + "]" * 20_000 + "}",
    ],
)
def test_headers_that_are_wrong(header: str | None, tmp_path: Path) -> None:
    """Another project's file, or a newer format, would be read as ours; a hostile one fill the memory, or end in a traceback; or
    nobody learn that an update is what helps.
    """
    tensors = dict(random_checkpoint(**SMALL).tensors)
    save_file(tensors, tmp_path / "a.safetensors", metadata={} if header is None else {"nowcast": header})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "a.safetensors")
    assert caught.value.detail.startswith(f"{tmp_path / 'a.safetensors'}: ")
    newer = "'flux': a newer version of nowcast may read this file" in caught.value.detail
    assert newer == ("flux" in str(header))


class Bomb:
    """What a hostile pickle does: run a function of its choice when loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/nowcast_bomb_went_off"),))


HOSTILE = ({"dropout": torch.zeros(2)}, {"lpe": "x"}, argparse.Namespace(hid=3), {"upd_scale": float("nan")}, None)


@pytest.mark.parametrize(
    "content",
    [{0: torch.zeros(1)}, {"state_dict": Bomb()}, *({"state_dict": {"a": torch.zeros(1)}, "model_args": each} for each in HOSTILE)],
)
def test_hostile_published_files_are_refused_by_name(content: dict[Any, Any], tmp_path: Path) -> None:
    """One of many `--checkpoint` files would end the server with a traceback that does not say which it is; or run its code."""
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=f"^{tmp_path / 'a.pt'}: "):
        load_checkpoint(tmp_path / "a.pt")
    assert not Path("/tmp/nowcast_bomb_went_off").exists()
