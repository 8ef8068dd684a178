"""The command `nowcast`, as a user meets it."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from trainer_worker.cli import app
from trainer_worker.tasks.task import Task
from trainer_worker.training.config import load_config

JOB = '[task]\nname = "fm-16"\nexamples = 40\n[train]\nsteps = 4\nbatch_size = 4\neval_every = 2\n[workers]\ncount = 0\n'
NETWORKS = (
    "from torch import nn\nnet = nn.Linear(3, 2)\n\ndef build():\n    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))\n"
)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "140"})


def refused(*arguments: str | Path) -> str:
    """What a command says that ends before it has done anything."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    return result.stderr


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny job in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


HELP = """
import sys
from typer.testing import CliRunner
from trainer_worker.cli import app
for command in ([], ["train"], ["compare"], ["wire"], ["keys"], ["submit"], ["doctor"], ["try"], ["metatrain"]):
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0, result.output
print({"torch", "ray", "matplotlib", "httpx2", "numpy"} & set(sys.modules))
"""


def test_help_imports_nothing_heavy_and_takes_less_than_a_second() -> None:
    """Torch alone takes over a second, Ray two. In seconds of computing, because the machine may be busy."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.strip() == "set()"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5  # of nine


@pytest.mark.parametrize("options", [["--steps", "0"], ["--server", "localhost"], ["--forecaster", "nowhere.pt"]])
def test_options_are_checked_like_the_file(job: Path, options: list[str]) -> None:
    """A zero or a bad address must not be taken for "not given"."""
    assert refused("compare", job, *options)


def test_a_comparison_is_checked_with_the_nowcasts_it_makes(job: Path) -> None:
    """Without a table of them in the file, workers of another cluster would wait for a server they cannot reach."""
    job.write_text(JOB + 'address = "auto"\n')
    assert "workers of another cluster cannot reach a server of this command's own; give its URL" in refused("compare", job)
    assert not (job.parent / "runs").exists()


def test_an_unfinished_run_is_not_deleted(job: Path) -> None:
    """Forgetting `--resume` once must not cost the checkpoints of a long run."""
    kept = job.parent / "runs" / "job" / "checkpoints" / "adam-seed1000"
    kept.mkdir(parents=True)
    assert "resume it with --resume, start over with --fresh" in refused("train", job)
    assert kept.exists()


@pytest.mark.parametrize(
    ("nowcast", "says"),
    [
        ('server = "embedded"\nforecaster = "oracle"', "forecaster: forecaster 'oracle' is not one of"),
        ('server = "http://[::1"\nforecaster = "last"', "server: 'http://[::1' is not a URL"),
    ],
    ids=["forecaster", "url"],
)
def test_a_mistake_ends_with_one_line(job: Path, nowcast: str, says: str) -> None:
    """What is misspelt, or found out when a run starts, would end in a traceback."""
    job.write_text(JOB + f"[nowcast]\n{nowcast}\n")
    said = refused("train", job)
    assert says in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("raw", [b"\xef\xbb\xbf" + JOB.encode(), JOB.replace("\n", "\r\n").encode()], ids=["BOM", "CRLF"])
def test_a_configuration_may_come_from_windows(job: Path, raw: bytes) -> None:
    """Its editors begin a file with a mark that TOML does not know."""
    plain = load_config(job, overrides={}, compared=False)
    job.write_bytes(raw)
    assert load_config(job, overrides={}, compared=False) == plain


def test_a_run_of_another_configuration_is_not_resumed(job: Path, small_fashion: Task) -> None:
    """One sentence that names the key, and nothing is deleted."""
    assert call("train", job).exit_code == 0
    folder = job.parent / "runs" / "job"
    job.write_text(JOB.replace("[train]", "[train]\nlr = 0.5"))
    for _ in range(2):
        said = refused("train", job, "--resume")
        assert "adam-seed1000 was started with train.lr = 0.006, not 0.5: use that again" in said
        assert (folder / "checkpoints" / "adam-seed1000" / "checkpoint.pt").exists()
        (folder / "runs" / "adam-seed1000.json").unlink(missing_ok=True)  # and of checkpoints alone


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--storage", "nosuch://bucket/runs"], "results cannot be written to nosuch://bucket/runs"),
        (["--out", "job.toml"], r"cannot write to the results folder .*job.toml.*choose another --out"),
    ],
)
def test_a_place_for_results_that_cannot_be_is_told_at_once(job: Path, options: list[str], says: str) -> None:
    """A traceback, or hours of training whose results are lost."""
    job.write_text(JOB.replace("count = 0", "count = 1"))
    assert re.search(says, refused("train", job, *options))
    assert [path for path in (job.parent / "runs").rglob("*") if path.is_file()] == []


def test_wire_shows_and_draws_a_network_of_the_users(job: Path) -> None:
    """A function or a network in a module of the working directory will do."""
    (job.parent / "users_networks.py").write_text(NETWORKS)
    result = call("wire", "users_networks:build", "--draw", "graph.svg")
    assert result.exit_code == 0, result.output
    assert "1.weight" in result.output
    assert (job.parent / "graph.svg").stat().st_size > 1000
    assert call("wire", "users_networks:net").exit_code == 0


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("torch.nn", "is not of the form MODULE:CALLABLE"),
        ("no_such_module:build", "No module named 'no_such_module'"),
        ("pathlib:Path", "gives a PosixPath, not a torch.nn.Module"),
        ("torch.nn:ReLU", "no real floating-point parameters"),
    ],
)
def test_wire_names_what_is_wrong(job: Path, place: str, message: str) -> None:
    """Each mistake in naming a network has its own words."""
    assert message in refused("wire", place)
