"""The table of hostile forecasters: were none of them ever asked, it would show that they do no harm."""

import scripts

hostile = scripts.load("bench/hostile.py")


def test_its_forecasters_are_asked() -> None:
    """It speaks the worker's protocol by itself, and nobody else runs it."""
    assert hostile.train("mlp", "stale", seed=0, steps=200).used > 100
    assert hostile.train("mlp", "nan", seed=0, steps=200).skipped > 100
