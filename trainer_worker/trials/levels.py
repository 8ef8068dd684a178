"""Where a run is before a jump: the losses of stretches of it, and the course through them."""

import math
from collections.abc import Mapping
from typing import Any, Final

from trainer_worker.trials.gauge import Gauge
from trainer_worker.trials.trend import Trend

COURSE: Final = 3
"""Intervals that a course is drawn through,"""
COUNT: Final = 2 * COURSE
"""and its levels, two each interval."""
RISING: Final = 2
"""Standard errors by which a course has to lead upwards to be believed,"""
ENOUGH: Final = 4
"""and its levels; where jumps come late (overlap) there are fewer than `COUNT`."""


class Levels:
    """The latest levels, and how far all levels have scattered about their courses.

    Args:
        gauge: measures the loss.
        interval: steps between snapshots.
        stretch: steps that one measurement is of, at most half an interval.
    """

    def __init__(self, gauge: Gauge, *, interval: int, stretch: int) -> None:
        self._gauge = gauge
        self._spacing, self._stretch = max(1, interval // 2), stretch
        self._levels: list[tuple[int, float]] = []  # (step, loss)
        self._variance = 0.0  # of each course's levels, added up
        self._courses = 0  # over so many

    def after_step(self, step: int) -> None:
        """Follow a step; measure where a level is due."""
        before = -step % self._spacing
        if before < self._stretch:
            self._gauge.follow()
        if not before:
            if self._gauge.steps == self._stretch:  # otherwise it began in the middle, after a verdict or a pause
                self._levels = [*self._levels[1 - COUNT :], (self.middle(step), self._gauge.measure())]
            self._gauge.forget()

    def middle(self, step: int) -> int:
        """Of the stretch that ends at `step`: there its loss stands."""
        return max(1, step - self._stretch // 2)

    @property
    def course(self) -> Trend:
        """The run's own course, through at least one level."""
        return Trend.through(self._levels)

    @property
    def variance(self) -> float:
        """Of one level about the course, in the mean over all courses that counted."""
        return self._variance / max(1, self._courses)

    def note_scatter(self) -> None:
        """A jump will be judged by the present course: its scatter counts."""
        variance = self.course.variance
        if variance is not None:
            self._variance += variance
            self._courses += 1

    def no_way_ahead(self) -> str:
        """Why the course is not to be followed further: it is not known, or it leads upwards, as where a run overfits. Empty if it
        may be.
        """
        if not self._levels or not all(math.isfinite(loss) for _, loss in self._levels):
            return "no_loss"
        course = self.course
        if course.variance is None or len(self._levels) < ENOUGH:
            return ""
        variance = (self._variance + course.variance) / (self._courses + 1)
        return "loss_rising" if course.rises(RISING, variance=variance) else ""

    def forget(self) -> None:
        """The next course begins; what was seen of the scatter stays."""
        self._levels.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        return {"levels": [list(level) for level in self._levels], "variance": self._variance, "courses": self._courses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._levels = [(step, loss) for step, loss in state["levels"]]
        self._variance, self._courses = state["variance"], state["courses"]
