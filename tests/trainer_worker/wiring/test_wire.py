"""The public function: mistakes it names, its size and speed, the same hash everywhere, its report."""

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from architectures import Lambda
from rich.console import Console
from torch import nn

from trainer_worker.wiring import describe, draw, show, wire
from trainer_worker.wiring.cli import load_inputs

ROOT = Path(__file__).resolve().parents[3]
HASHES = """
import torch
from torch import nn
from trainer_worker.wiring import wire
torch.manual_seed(torch.seed())
print(wire(nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 24 * 24, 4))).hash)
print(wire(nn.TransformerEncoderLayer(16, 4, 32)).hash)
print(wire(nn.GRU(3, 5, num_layers=2)).hash)
"""


def test_a_billion_parameters() -> None:
    """The wiring of Llama 3.2 1B would be slow to build or heavy to send."""
    import transformers

    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, tie_word_embeddings=True))
    start = time.process_time()
    wiring = wire(model)
    took_s = time.process_time() - start
    assert wiring.size > 1.2e9
    assert took_s < 3
    assert len(wiring.to_json()) < 1_000_000
    assert sum(block.size for block in wiring.blocks) == wiring.size


def test_hash_is_the_same_in_every_process(capsys: pytest.CaptureFixture[str]) -> None:
    """Workers of one job, or a job resumed, would register under wirings that differ."""
    exec(HASHES)
    command, environment = [sys.executable, "-c", HASHES], {"PYTHONHASHSEED": "2"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == capsys.readouterr().out


def test_shared_empty_and_frozen_parameters() -> None:
    """Tied weights would be twice in the flat vector; empty tensors have no edges; frozen ones are in the vector like any other."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    model.nothing = nn.Parameter(torch.empty(0, 4))
    model[0].weight.requires_grad_(False)
    assert wire(model).size == 16 + 8


def test_table() -> None:
    """Users could not see what was not understood, and why: what their network says, in brackets, would be taken for markup."""
    said = "expected [batch, time] ids from [/data/x]"

    def fail(m: nn.Module, _: torch.Tensor) -> torch.Tensor:
        raise ValueError(said)

    net = Lambda(fail, body=nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), spare=nn.Parameter(torch.zeros(5)))
    out = io.StringIO()
    show(describe(net), Console(file=out, width=200))
    for expected in ("body.0.weight", "traced", "linear", "spare", "fallback", "83.9%", said):
        assert expected in out.getvalue()


def test_picture(tmp_path: Path) -> None:
    """The picture of a graph with heads, residual connections and embeddings could not be drawn."""
    import transformers

    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=30, n_positions=6)
    draw(describe(transformers.GPT2LMHeadModel(config)), tmp_path / "graph.svg")
    picture = (tmp_path / "graph.svg").read_text()
    for seen in ("transformer.wte", "h.0.attn.c_attn", "residual", "query key value"):
        assert seen in picture
    with pytest.raises(ValueError, match=r"ends in \.svg"):
        draw(describe(nn.Linear(2, 2)), tmp_path / "graph.png")


def test_shapes_from_the_command_line() -> None:
    """`nowcast wire` could not be told what a network takes where guessing fails."""
    floats, whole, mask = load_inputs("2x3x4, 2x16:int64,2x16:bool")
    assert (floats.shape, floats.dtype) == ((2, 3, 4), torch.float32)
    assert (whole.shape, whole.dtype, mask.dtype) == ((2, 16), torch.int64, torch.bool)
    assert isinstance(load_inputs("torch.nn:Tanh"), nn.Tanh)


@pytest.mark.parametrize("text", ["2x3:floot", "images", "math:pi", "torch:nothing"])
def test_inputs_that_are_none(text: str) -> None:
    """A misspelt input would be a traceback."""
    with pytest.raises(ValueError, match=r"dtype|MODULE:CALLABLE|cannot be called|no attribute"):
        load_inputs(text)
