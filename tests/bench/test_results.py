"""What the words say that Nowcast saves, against the runs that are kept with the project."""

import pytest
import scripts

ARMS = {
    "Nowcast": "spectral",
    "Nowcast on Adam": "spectral",
    "Nowcast on Muon": "spectral+muon",
    "AdEMAMix": "ademamix",
    "EMA-Nesterov": "ema-nesterov",
    "Muon": "muon",
}
TASKS = {"colour": "colour", "batch normalisation": "fm-bn", "diamonds": "diamonds", "Bible": "bible", "Wikipedia": "wikipedia"}
EARLIER = "*"  # marks a figure whose runs are not kept

Saved = dict[tuple[str, str], tuple[str, str]]


@pytest.fixture(scope="module")
def saved() -> Saved:
    """By arm and problem, the steps saved to where Adam's average is at 75% of its run, and at its end."""
    report = scripts.load("bench/acceleration/report.py")
    kept, found = report.read(report.KEPT), {}
    for arm in set(ARMS.values()):
        for row in report.compare(kept, arm, rival="adam"):
            early, end = ("never" if each is None else f"{-each:.0%}" for each in row["steps"]["loss"][:2])
            found[arm, row["problem"]] = early, end
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


def test_readme_says_what_the_kept_runs_say(saved: Saved) -> None:
    """The first figures that anybody reads would be of last week's code, or of no run at all."""
    head, *rows = table("README.md", "| task |")
    assert len(rows) == len(TASKS)
    for name, *cells in rows:
        for arm, cell in zip(head[1:], cells, strict=True):
            where = ARMS.get(arm, ""), problem_of(name)
            assert cell == saved[where][1] if where in saved else cell[-1:] in ("", EARLIER), where


def test_the_page_on_when_it_helps_says_what_the_kept_runs_say(saved: Saved) -> None:
    """The same, of the table by which people choose an optimizer."""
    head, *rows = table("docs/when.md", "| | diamonds |")
    for name, *cells in rows:
        for task, cell in zip(head[1:], cells, strict=True):
            where = ARMS.get(name.partition(",")[0], ""), problem_of(task)
            if where in saved:
                early, end = saved[where]
                assert cell.partition(",")[0] == f"{early.removesuffix('%')} / {end}", where
            else:
                assert cell[-1:] in ("", EARLIER), where
