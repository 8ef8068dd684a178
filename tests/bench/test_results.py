"""What the words say that Nowcast saves, against the runs that are kept with the project."""

from typing import Any

import pytest
import scripts

ARMS = {  # by how the words begin, the longest first
    "Nowcast on AdEMAMix": "spectral+ademamix:alpha=5,beta3=0.999",
    "Nowcast on Adam": "spectral",
    "Nowcast on Muon": "spectral+muon",
    'the same with `forecaster="linear"`': "linear",
    "Nowcast": "spectral",
    "AdEMAMix": "ademamix",
    "EMA-Nesterov": "ema-nesterov",
    "Muon": "muon",
    "jumps": "nino+jump",
}
FALLING = {"cosine": "cosine", "a line to zero": "decay", "warmup-stable-decay": "wsd"}
TASKS = {
    "colour": "colour",
    "batch normalisation": "fm-bn",
    "diamonds": "diamonds",
    "FM-32": "fm-32",
    "convnet, Fashion-MNIST": "fm-32",
    "Bible": "bible",
    "Wikipedia": "wikipedia",
    "animal": "animals",
}
EARLIER = "*"  # marks a figure whose runs are not kept

Rows = dict[str, dict[str, Any]]


def kept(arm: str, *, rival: str) -> Rows:
    """By problem, what the report says of an arm."""
    report = scripts.load("bench/acceleration/report.py")
    return {row["problem"]: row for row in report.compare(report.read(report.KEPT), arm, rival=rival)}


@pytest.fixture(scope="module")
def saved() -> dict[tuple[str, str], tuple[str, str]]:
    """By arm and problem, the steps saved to where Adam's average is at 75% of its run, and at its end."""
    found = {}
    for arm in set(ARMS.values()):
        for problem, row in kept(arm, rival="adam").items():
            early, end = ("never" if each is None else f"{-each:.0%}" for each in row["steps"]["loss"][:2])
            found[arm, problem] = early, end
    return found


def table(path: str, head: str) -> list[list[str]]:
    """The cells of the table whose first line begins like this, without those of its rule."""
    lines = (scripts.ROOT / path).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(head))
    end = next(number for number, line in enumerate([*lines[start:], ""], start) if not line.startswith("|"))
    rows = [[cell.replace("**", "").strip() for cell in line.split("|")[1:-1]] for line in lines[start:end]]
    return [rows[0], *rows[2:]]


def problem_of(words: str) -> str:
    (found,) = {problem for part, problem in TASKS.items() if part in words}
    return found


def arm_of(words: str) -> str:
    return next(arm for start, arm in ARMS.items() if words.startswith(start))


def test_readme_says_what_the_kept_runs_say(saved: dict[tuple[str, str], tuple[str, str]]) -> None:
    """The first figures that anybody reads would be of last week's code, or of no run at all."""
    head, *rows = table("README.md", "| task |")
    assert len(rows) >= 5
    for name, *cells in rows:
        for arm, cell in zip(head[1:], cells, strict=True):
            where = arm_of(arm), problem_of(name)
            assert cell == saved[where][1] if where in saved else cell[-1:] in ("", EARLIER), where


def test_the_page_on_when_it_helps_says_what_the_kept_runs_say(saved: dict[tuple[str, str], tuple[str, str]]) -> None:
    """The same, of the table by which people choose an optimizer."""
    head, *rows = table("docs/when.md", "| | diamonds |")
    for name, *cells in rows:
        for task, cell in zip(head[1:], cells, strict=True):
            where = arm_of(name), problem_of(task)
            if where in saved:
                early, end = saved[where]
                wanted = "never" if early == end == "never" else f"{early.removesuffix('%')} / {end}"
                assert cell == wanted, where
            else:
                assert cell[-1:] in ("", EARLIER), where


def test_the_page_says_where_kept_runs_under_falling_rates_end() -> None:
    """The same, of runs whose learning rate falls: adam's column, then that with pushes."""
    head, *rows = table("docs/when.md", "| falling rate |")
    for name, *cells in rows:
        ends = kept(f"spectral+{FALLING[name]}", rival=FALLING[name])
        for task, cell in zip(head[1:], cells, strict=True):
            row = ends.get(problem_of(task))
            assert cell == (" → ".join(f"{loss:#.3g}" for loss in row["end"]) if row else ""), (name, task)
