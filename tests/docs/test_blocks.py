"""The code in README and pages: blocks marked `python` run as pasted, those marked `py` are fragments that parse."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


EXTRAS = ("fastapi", "pydantic_settings", "prometheus_client", "ray", "matplotlib", "torch_geometric", "transformers", "lightning")
"""What `.[embedded]`, which README and pages tell to install, does not bring."""


def run(code: str, folder: Path) -> str:
    """What a script prints in an empty folder, in an environment that names no server and has no other extra than `embedded`."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"
    (folder / "pasted.py").write_text(hidden + code)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("NOWCAST_")}
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", "pasted.py"]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md", "docs/loop.md", "docs/forecasters.md"])
def test_blocks_run_as_pasted(name: str, tmp_path: Path) -> None:
    """The first thing a newcomer tries would fail."""
    code = "\n".join(blocks(ROOT / name, "python"))
    assert "Nowcast(" in code
    printed = run(code, tmp_path)
    assert re.search(r"'used': [1-9]", printed) or name == "docs/loop.md", printed


@pytest.mark.slow
def test_the_recipe_compares(tmp_path: Path) -> None:
    """The page on honest comparisons would hand out a script that does not run."""
    (code,) = blocks(ROOT / "docs/compare.md", "python")
    short = code.replace("STEPS, EVERY, DECAY = 2000, 50", "STEPS, EVERY, DECAY = 300, 50")
    short = short.replace("RATES, SEEDS = (1e-3, 3e-3, 1e-2), (1, 2, 3)", "RATES, SEEDS = (1e-3, 3e-3), (1, 2)")
    assert short.count("= 300") == short.count("(1, 2)\n") == 1
    assert "steps saved to the plain run's final loss" in run(short, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_marked_and_parses(page: Path) -> None:
    """A fragment would not be Python, or a block would escape the tests for want of a mark."""
    for language, code in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        if language in ("python", "py"):
            ast.parse(code)
    runnable = {"README.md", "quickstart.md", "loop.md", "forecasters.md", "compare.md"}
    assert page.name in runnable or not blocks(page, "python"), "mark it py, or add the page to the tests"
