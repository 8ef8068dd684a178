"""The code in README and pages: blocks marked `python` run as pasted, those marked `py` are fragments that parse."""

import json
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


def run(codes: dict[str, str], folder: Path) -> dict[str, str]:
    """What scripts print in an empty folder, one after the other in one process (torch takes seconds to import), in an environment
    that names no server and has no other extra than `embedded`.
    """
    (folder / "run.py").write_text(RUN)
    (folder / "codes.json").write_text(json.dumps(codes))
    variables = {name: value for name, value in os.environ.items() if not name.startswith("NOWCAST_")}
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", "run.py"]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = re.split(r"^page (.*)\n", done.stdout, flags=re.MULTILINE)
    return dict(zip(printed[1::2], printed[2::2], strict=True))


RUN = f"""
import json, sys
sys.modules.update(dict.fromkeys({EXTRAS}))
for name, code in json.load(open("codes.json")).items():
    print("page", name)
    exec(compile(code, name, "exec"), {{"__name__": "__main__"}})
"""


@pytest.mark.slow
def test_blocks_run_as_pasted(tmp_path: Path) -> None:
    """The first thing a newcomer tries would fail; or the page on honest comparisons would hand out a script that does not run."""
    pages = ["README.md", "docs/quickstart.md", "docs/loop.md", "docs/forecasters.md"]
    codes = {name: "\n".join(blocks(ROOT / name, "python")) for name in pages}
    assert all("Nowcast(" in code for code in codes.values())
    (recipe,) = blocks(ROOT / "docs/compare.md", "python")
    short = recipe.replace("STEPS, EVERY, DECAY = 2000, 50", "STEPS, EVERY, DECAY = 300, 50")
    short = short.replace("RATES, SEEDS = (1e-3, 3e-3, 1e-2), (1, 2, 3)", "RATES, SEEDS = (1e-3, 3e-3), (1, 2)")
    assert short.count("= 300") == short.count("(1, 2)\n") == 1
    same = recipe.replace("best(False), best(True)", "2 * ((1e-3, [[0.5, 0.3, 0.4]]),)")
    printed = run({**codes, "recipe": short, "a run against itself": same}, tmp_path)
    for name in pages:
        assert re.search(r"'used': [1-9]", printed[name]) or name == "docs/loop.md", printed[name]
    assert "steps saved to the plain run's final loss" in printed["recipe"]
    assert "final loss: 0% (by seed: 0%)" in printed["a run against itself"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_marked_and_parses(page: Path) -> None:
    """A fragment would not be Python, or a block would escape the tests for want of a mark."""
    for language, code in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        if language in ("python", "py"):
            compile(code, page.name, "exec")
    runnable = {"README.md", "quickstart.md", "loop.md", "forecasters.md", "compare.md"}
    assert page.name in runnable or not blocks(page, "python"), "mark it py, or add the page to the tests"
