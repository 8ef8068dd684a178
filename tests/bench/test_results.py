"""What the words say that Nowcast saves, against the runs that are kept with the project."""

from functools import cache
from typing import Any

import pytest
import scripts

ARMS = {  # by how the words begin, the longest first
    "Nowcast on AdEMAMix": "spectral+ademamix:alpha=5,beta3=0.999",
    "Nowcast on Adam": "spectral",
    "Nowcast on Muon": "spectral+muon",
    "Nowcast": "spectral",
    "AdEMAMix": "ademamix",
    "EMA-Nesterov": "ema-nesterov",
    "Muon": "muon",
    "Adam": "adam",
    "jumps": "nino+jump",
}
FALLING = {"cosine": "cosine", "a line to zero": "decay", "warmup-stable-decay": "wsd"}
TASKS = {
    "colour": "colour",
    "batch normalisation": "fm-bn",
    "diamonds": "diamonds",
    "FM-32": "fm-32",
    "Bible": "bible",
    "Wikipedia": "wikipedia",
}
EARLIER = "*"  # marks a figure whose runs are not kept


@cache
def kept(arm: str, rival: str) -> dict[str, Any]:
    """By problem, what the report says of an arm."""
    report, problems = runs()
    return {row["problem"]: row for row in report.compare(problems, arm, rival=rival)}


@cache
def runs() -> tuple[Any, Any]:
    report = scripts.load("bench/acceleration/report.py")
    return report, report.read(report.KEPT)


def saved(row: dict[str, Any]) -> tuple[str, str]:
    """Steps saved to where the rival's average is at 75% of its run, and at its end."""
    early, end = ("never" if each is None else f"{-each:.0%}" for each in row["steps"]["loss"][:2])
    return early, end


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


def test_readme_says_what_the_kept_runs_say() -> None:
    """The first figures that anybody reads would be of last week's code, or of no run at all."""
    head, *rows = table("README.md", "| task |")
    assert len(rows) == 5
    for name, *cells in rows:
        for arm, cell in zip(head[1:], cells, strict=True):
            row = kept(arm_of(arm), "adam").get(problem_of(name))
            assert cell == saved(row)[1] if row else cell[-1:] in ("", EARLIER), (arm, name)


@pytest.mark.parametrize("start", ["| | diamonds |", "| on | diamonds |"], ids=["to Adam's losses", "to the optimizer's own"])
def test_the_page_on_when_it_helps_says_what_the_kept_runs_say(start: str) -> None:
    """The same, of the tables by which people choose an optimizer."""
    head, *rows = table("docs/when.md", start)
    for name, *cells in rows:
        arm, rival = (arm_of(f"Nowcast on {name}"), arm_of(name)) if head[0] == "on" else (arm_of(name), "adam")
        for task, cell in zip(head[1:], cells, strict=True):
            row = kept(arm, rival).get(problem_of(task))
            if row:
                early, end = saved(row)
                assert cell == ("never" if early == end == "never" else f"{early.removesuffix('%')} / {end}"), (name, task)
            else:
                assert cell[-1:] in ("", EARLIER), (name, task)


def test_the_page_says_where_kept_runs_under_falling_rates_end() -> None:
    """The same, of runs whose learning rate falls: without pushes → with them."""
    head, *rows = table("docs/when.md", "| falling rate |")
    for name, *cells in rows:
        ends = kept(f"spectral+{FALLING[name]}", FALLING[name])
        for task, cell in zip(head[1:], cells, strict=True):
            row = ends.get(problem_of(task))
            assert cell == (" → ".join(f"{loss:#.3g}" for loss in row["end"]) if row else ""), (name, task)
