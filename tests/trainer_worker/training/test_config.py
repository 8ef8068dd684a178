"""Configurations: read strictly, with errors that say where and what instead."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from trainer_worker import Push
from trainer_worker.errors import CommandFailed
from trainer_worker.training.config import TABLES, Config, load_config, show_keys

DEMO = Path(__file__).resolve().parents[3] / "deploy" / "demo.toml"


def load(folder: Path, text: str, **overrides: object) -> Config:
    path = folder / "job.toml"
    path.write_text(text)
    return load_config(path, overrides={name.replace("__", "."): value for name, value in overrides.items()})


def test_only_the_task_must_be_given(tmp_path: Path) -> None:
    """Defaults are the paper's; a two-line file is a whole job."""
    config = load(tmp_path, '[task]\nname = "fm-16"')
    assert (config.train.lr, config.train.batch_size, config.train.weight_decay) == (6e-3, 128, 0.0)
    assert config.nowcast is None


def test_every_key_is_explained() -> None:
    """`nowcast keys` is all the documentation they have."""
    unexplained = [
        f"{name}.{key}" for name, table in TABLES.items() for key, field in table.model_fields.items() if not field.description
    ]
    assert unexplained == []
    console = Console(width=200, record=True, file=io.StringIO())
    show_keys(console)
    shown = console.export_text()
    assert all(f"[{name}]" in shown and all(key in shown for key in table.model_fields) for name, table in TABLES.items())


def test_the_demo_is_a_valid_configuration() -> None:
    """`make demo` would stop at its first line."""
    config = load_config(DEMO)
    assert config.nowcast is not None
    assert config.workers.count == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[train]\nbatchsize = 8", "[train] batchsize: unknown key; did you mean batch_size?"),
        ("[trian]\nsteps = 8", "unknown table [trian]; did you mean train?"),
        ("[workers]\nzebra = 1", "[workers] zebra: unknown key (known: count, gpus_per_worker, threads, max_failures, address)"),
        ("[train]\nlr = -1.0", "[train] lr: Input should be greater than 0 (it is -1.0)"),
        ("[train]\nseeds = [1, 1]", "[train] seeds: seeds must differ (it is [1, 1])"),
        ("[workers]\ncount = 3", "train.batch_size 128 does not split evenly over 3 workers"),
        ("[nowcast]\nserver = 'localhost:8440'", "[nowcast] server: must be own, embedded, or an address"),
        ("[nowcast]\nforecaster = 'nowhere.pt'", "forecaster: there is no file"),
        ("[nowcast]\nserver = 'http://a:1'\nforecaster = './a.pt'", "the one at a URL has its own weights"),
        ("[nowcast]\n[workers]\naddress = 'auto'", "cannot reach a server of this command's own; give its URL"),
        ("[workers]\naddress = 'http://HEAD:8265'", "[workers] address: is where jobs are submitted: give HEAD:6379"),
        ("[nowcast]\nmode = 'leap'", "[nowcast] mode: Input should be 'glide', 'jump' or 'shadow'"),
        ("steps = ", "not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    """A misspelt key that is silently ignored costs a whole run; the message names file, table, key and the way out."""
    with pytest.raises(CommandFailed) as caught:
        load(tmp_path, f'{text}\n[task]\nname = "fm-16"')
    assert f"{tmp_path / 'job.toml'}: " in str(caught.value)
    assert expected in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Nobody wants to mend a file one error at a time."""
    with pytest.raises(CommandFailed) as caught:
        load(tmp_path, '[task]\nname = "fm16"\n[train]\nsteps = 0\nsed = [1]')
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "Input should be 'fm-16' or 'fm-32' (it is 'fm16')" in lines[0]


def test_a_missing_file_or_table_is_named(tmp_path: Path) -> None:
    """The two mistakes everyone makes first."""
    with pytest.raises(CommandFailed, match=r"nowhere\.toml: No such file or directory"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(CommandFailed, match=r"the table \[task\] is missing"):
        load(tmp_path, "[train]\nsteps = 5")


def test_pushes_are_as_the_table_says(tmp_path: Path) -> None:
    """A key that is read and not passed on is worse than one that is refused."""
    table = load(tmp_path, '[task]\nname = "fm-16"\n[nowcast]').nowcast
    assert table.push == Push(gain=0.85)
    text = "gain = 0.3\nstart = 0.2\nfade = 0.4\nhold_norms = false\nhorizon = 7"
    table = load(tmp_path, f'[task]\nname = "fm-16"\n[nowcast]\n{text}').nowcast
    assert table.push == Push(gain=0.3, start=0.2, fade=0.4, hold_norms=False, horizon=7)


@pytest.mark.parametrize("storage", ["s3://mine/runs?region=eu", "s3://mine/runs/?region=eu"])
def test_a_store_is_reached_as_its_address_says(tmp_path: Path, storage: str) -> None:
    """Checkpoints would go to an endpoint or a region that ends in the name of a folder; or S3 refuse the run for an empty name."""
    output = load(tmp_path, f'[task]\nname = "fm-16"\n[output]\nstorage = "{storage}"').output
    assert output.place == "s3://mine/runs/checkpoints?region=eu"


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's workers run in other folders than the command did."""
    monkeypatch.chdir(tmp_path)
    config = load(tmp_path, '[task]\nname = "fm-16"\ndata = "d"\n[output]\nfolder = "o"')
    assert (config.task.data, config.output.folder) == (tmp_path / "d", tmp_path / "o")
