"""The page on what Nowcast works with, which docs/matrix.py writes."""

import importlib.util
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_says_what_happens() -> None:
    """An optimizer would undo pushes without a word, or the page name a test that is gone."""
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "docs/matrix.py")
    assert spec is not None
    assert spec.loader is not None
    matrix = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(matrix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optimizers
        made = matrix.tables()
    assert "accepted, but" not in made
    assert made == matrix.PAGE.read_text().partition(matrix.MARKER)[2], "run docs/matrix.py"
