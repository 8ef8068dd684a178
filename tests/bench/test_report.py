"""The benchmark's figures: what every claim about saved steps is read from."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import scripts


@pytest.fixture(scope="module")
def report() -> ModuleType:
    """bench/ is a folder of scripts, no package."""
    return scripts.load("bench/acceleration/report.py")


def store(
    folder: Path, arm: str, losses: list[float], *, seed: int = 1, lr: float = 1e-3, steps: int | None = None, problem: str = "p"
) -> None:
    """A run evaluated every 100 steps; its average is always 0.1 lower, its share of right answers 1 - loss."""
    curve = [[100 * (i + 1), loss, loss - 0.1, 1 - loss, 1.1 - loss] for i, loss in enumerate(losses)]
    run: dict[str, Any] = {"problem": problem, "arm": arm, "lr": lr, "seed": seed, "steps": steps or 100 * len(losses)}
    run |= {"train_s": 1.0, "curve": curve, "test": [0.3, 0.2], "test_right": [0.7, 0.8]}
    run |= {"nowcasts": {}} if arm.startswith("nino") else {}
    (folder / f"{problem}-{arm}-{lr}-{run['steps']}-{seed}.json").write_text(json.dumps(run))


def rows(report: ModuleType, folder: Path) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in report.summarise(report.read(folder))}


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with a run of `adam`, and a faster one of `nino`."""
    store(tmp_path, "adam", FALLING)
    store(tmp_path, "nino", FASTER)
    return tmp_path


FALLING = [1.0 - 0.05 * i for i in range(15)]  # smoothed 0.4 at the end, 1500 steps
FASTER = [max(0.35, 1.0 - 0.1 * i) for i in range(15)]  # smoothed 0.44 at step 900 (0.6 0.5 0.4 0.35 0.35), 0.39 at 1000


def test_steps_to_where_a_rival_ends(report: ModuleType, two: Path) -> None:
    """The headline figure: a mean that looked ahead, or a target of another arm, would make it up."""
    found = rows(report, two)
    assert found["nino"]["steps"]["loss"] == {"adam": pytest.approx(980.0), "adam+ema": None}
    assert found["nino+ema"]["steps"]["loss"]["adam+ema"] == pytest.approx(980.0)
    assert found["nino"]["steps"]["wrong"]["adam"] == pytest.approx(980.0)
    assert found["adam"]["steps"]["loss"]["adam"] == 1500.0
    assert found["adam"]["final"] == pytest.approx(0.4)


def test_medians_over_seeds_and_the_length_that_is_first(report: ModuleType, tmp_path: Path) -> None:
    """One lucky seed, or a shorter run of another seed, would pass for the arm."""
    for seed in (1, 2, 3):
        store(tmp_path, "decay", FALLING, seed=seed)
    for seed, shift in ((1, 0), (2, 2), (3, 4)):
        store(tmp_path, "nino+decay", [1.0, *[1.0] * shift, *[0.1] * (14 - shift)], seed=seed)
    first = rows(report, tmp_path)["nino+decay"]["steps"]["loss"]["decay"]
    store(tmp_path, "nino+decay", [0.1] * 10, seed=2, steps=1000)
    second = rows(report, tmp_path)["nino+decay"]["steps"]["loss"]["decay"]
    assert (first, second) == (pytest.approx(633.33, abs=0.01), 500.0)


def test_each_arm_has_its_best_rate(report: ModuleType, tmp_path: Path) -> None:
    """A rival at a poor rate, or at one at which it diverges, is no rival."""
    store(tmp_path, "adam", FALLING, lr=1e-3)
    store(tmp_path, "adam", [0.2] * 15, lr=1e-2)
    store(tmp_path, "nino", FALLING, lr=1e-3)
    for arm, lr in (("adam", 5e-4), ("decay", 1e-3)):
        store(tmp_path, arm, [0.8] * 10 + [float("nan")] * 5, lr=lr)
    found = rows(report, tmp_path)
    assert found["adam"]["lr"] == "0.01"
    assert list(found["adam"]["rates"]) == ["0.0005", "0.001", "0.01"]
    assert found["nino"]["steps"]["loss"] == {"adam": None, "adam+ema": None, "decay": None}


def test_a_rate_that_was_merely_looked_at_does_not_compete(report: ModuleType, tmp_path: Path) -> None:
    """Its one lucky seed would stand against the median of the others."""
    for seed in (1, 2, 3):
        store(tmp_path, "adam", FALLING, seed=seed)
        store(tmp_path, "nino", FALLING, seed=seed)
    store(tmp_path, "nino", [0.1] * 15, lr=1e-2)
    found = rows(report, tmp_path)["nino"]
    assert found["lr"] == "0.001"
    assert found["steps"]["loss"]["adam"] == 1500.0
    assert found["rates"]["0.01"] == {1: pytest.approx(0.1)}


def test_averages_are_compared_with_averages_and_weights_with_weights(report: ModuleType, two: Path) -> None:
    """A forecaster's average against plain weights would gain what averaging gains."""
    (row,) = report.compare(report.read(two), "nino", rival="adam")
    assert row["steps"]["loss"] == [pytest.approx(each) for each in (700 / 1100 - 1, 980 / 1500 - 1) * 2]
    assert row["seconds"] == [pytest.approx(1.0), pytest.approx(980 / 1500)]


def test_a_rival_is_compared_at_its_best_settings(report: ModuleType, tmp_path: Path) -> None:
    """A forecaster would win against a rival that nobody tuned."""
    store(tmp_path, "adam", FALLING)
    store(tmp_path, "nino", [1.0 - 0.06 * i for i in range(15)])  # where the rival ends, at 0.35, 183 steps after it
    store(tmp_path, "ademamix:alpha=2", FALLING)
    store(tmp_path, "ademamix:alpha=5", FASTER)
    (row,) = report.compare(report.read(tmp_path), "nino", rival="strongest")
    assert (row["rival"], row["rates"][0]) == ("ademamix", "0.001:alpha=5")
    assert row["steps"]["loss"][1] == pytest.approx(1383.33 / 1200 - 1, abs=1e-4)


def test_a_spike_shows(report: ModuleType, tmp_path: Path) -> None:
    """Smoothing would hide what a bad forecast does for a moment; the high losses of the start are no spike."""
    store(tmp_path, "adam", FALLING)
    store(tmp_path, "nino", [2.0, *FALLING[1:8], 1.8, *FALLING[9:]])
    (row,) = report.compare(report.read(tmp_path), "nino", rival="adam")
    assert row["spike"] == pytest.approx(1.8 / 0.95)


@pytest.mark.parametrize(("without", "median"), [((), "-17.3%"), (("r",), "-34.7%")])
def test_the_median_leaves_out_what_was_fitted_to(
    report: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], without: tuple[str, ...], median: str
) -> None:
    """What the forecaster was fitted to would flatter it."""
    for problem, losses in (("q", FASTER), ("r", FALLING)):
        store(tmp_path, "adam", FALLING, problem=problem)
        store(tmp_path, "nino", losses, problem=problem)
    report.print_comparison(report.compare(report.read(tmp_path), "nino", rival="adam"), "nino", rival="adam", without=without)
    shown = capsys.readouterr().out
    assert next(line for line in shown.splitlines() if "median" in line).count(median) == 3


def test_a_table_and_a_picture_come_of_it(report: ModuleType, two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The benchmark would fail at its last line, after hours."""
    problems = report.read(two)
    summary = report.summarise(problems)
    json.dumps(summary)
    report.print_table(summary)
    report.draw(problems, two / "picture.png")
    assert "980 (-35%)" in capsys.readouterr().out
    assert (two / "picture.png").stat().st_size > 1000
