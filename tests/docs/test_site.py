"""The documentation as a site, its tables from the code, and what the README promises."""

import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import scripts
from pydantic import ByteSize, TypeAdapter

from nowcast_server.settings import Settings
from protos.errors import ERRORS, NowcastError
from trainer_worker.errors import REASONS, reason_for

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """docs/generate.py, which mkdocs loads by its path."""
    return scripts.load("docs/generate.py")


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    """A dead link, a page outside the navigation, or a name that the API reference cannot find."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "site/metrics/index.html").read_text()
    assert "nowcast_queue_depth" in text
    assert "generated:" not in text


def test_every_marker_has_a_table(generate: ModuleType) -> None:
    """A misspelt marker would end the build, and a table that no page shows would be forgotten."""
    pages = [path.read_text() for path in (ROOT / "docs").glob("*.md")]
    assert {name for page in pages for name in generate.MARKER.findall(page)} == set(generate.TABLES)


@pytest.mark.parametrize(
    ("table", "shown"),
    [
        ("extras", "`embedded`"),
        ("configuration", "`hold_norms`"),
        ("settings", "| `NOWCAST_MEMORY` | `8.0 GiB` | Memory for the histories"),
        ("commands", "nowcast-server serve-on-ray"),
        ("http", "PUT /v1/jobs/{job}/snapshots/{step}"),
        ("metrics", "| `nowcast_uploads_total` | counter | `outcome` |"),
        ("errors", "`out_of_memory_budget` | 507"),
        ("errors", "`NowcastError` | The server failed"),
        ("reasons", "`late`"),
        ("forecasters", "`nino`"),
    ],
)
def test_tables_hold_what_the_code_says(generate: ModuleType, table: str, shown: str) -> None:
    """A library's next version may tell its fields in another way, and a table would be empty."""
    made = generate.TABLES[table]()
    assert shown in made
    assert not re.search(r"\|  \|$", made, re.MULTILINE), "a row without a meaning"


def test_every_reason_that_is_no_code_is_explained() -> None:
    """A user would read a word in the summary that no page knows."""
    told = {reason_for(error("")) for error in ERRORS.values()} | {reason_for(ValueError())}
    assert told - set(ERRORS) == set(REASONS)
    assert reason_for(NowcastError("")) == "server_error"


def test_every_limit_is_explained_with_its_default() -> None:
    """An operator would set limits by what they were in another version, or not know of one."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?)(?: s)? \|", (ROOT / "docs/security.md").read_text(), re.MULTILINE)
    shown = {name: None if text == "none" else TypeAdapter(ByteSize).validate_python(text) for name, text in rows}
    limits = {
        name: field.default
        for name, field in Settings.model_fields.items()
        if name not in {"port", "threads"} and (name.endswith("_memory") or type(field.default) in {int, float, ByteSize})
    }
    assert shown == limits


def test_the_readme_is_short_and_all_stay_at_home() -> None:
    """A newcomer reads it in a minute, and nothing in it or the pages depends on files beside the repository."""
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) < 600
    assert "../" not in text
    for path in (ROOT / "docs").glob("*.md"):
        page = path.read_text()
        assert "../shared" not in page, path.name
        assert "/work/" not in page, path.name
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / target).exists(), target


def test_make_help_lists_every_target() -> None:
    """A target without a line of help would not be found."""
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    # Under `make test` an inner make would announce the directories that it enters.
    command = ["make", "--no-print-directory", "help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert {line.split()[1] for line in done.stdout.splitlines()} == set(phony.split())


def test_the_page_of_what_it_works_with_says_what_happens() -> None:
    """An optimizer would undo pushes without a word, or the page name a test that is gone."""
    matrix = scripts.load("docs/matrix.py")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optimizers
        made = matrix.tables()
    assert "accepted, but" not in made
    assert made == matrix.PAGE.read_text().partition(matrix.MARKER)[2], "run docs/matrix.py"
