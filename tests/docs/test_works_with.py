"""The page on what Nowcast works with, which docs/matrix.py writes."""

import warnings

import scripts


def test_the_page_says_what_happens() -> None:
    """An optimizer would undo pushes without a word, or the page name a test that is gone."""
    matrix = scripts.load("docs/matrix.py")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optimizers
        made = matrix.tables()
    assert "accepted, but" not in made
    assert made == matrix.PAGE.read_text().partition(matrix.MARKER)[2], "run docs/matrix.py"
