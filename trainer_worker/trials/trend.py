"""The course of a training loss, drawn on: where a run would be without a jump, and how sure one can be of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trend:
    """Least squares through losses: `a step^b` with b <= 0, the shape of a training curve, or `a + b log(step)` where losses are
    not all positive.

    Args:
        power: which of the two.
        level: log(loss), or the loss itself, at `centre`.
        centre: mean of log(step).
        incline: of the best line through them, upwards too.
        width: sum of squares of log(step) about `centre`.
        count: how many losses.
        variance: of log(loss), or the loss itself, about that line; None where the losses are too few to tell.
    """

    power: bool
    level: float
    centre: float
    incline: float
    width: float
    count: int
    variance: float | None

    @classmethod
    def through(cls, losses: Sequence[tuple[int, float]]) -> "Trend":
        """The trend of (step, loss), at least one."""
        power = all(0 < loss < math.inf for _, loss in losses)
        xs = [math.log(step) for step, _ in losses]
        ys = [math.log(loss) if power else loss for _, loss in losses]
        centre, level = sum(xs) / len(xs), sum(ys) / len(ys)
        width = sum((x - centre) ** 2 for x in xs)
        incline = sum((x - centre) * (y - level) for x, y in zip(xs, ys, strict=True)) / width if width else 0.0
        rest = sum((y - level - incline * (x - centre)) ** 2 for x, y in zip(xs, ys, strict=True))
        return cls(power, level, centre, incline, width, len(xs), rest / (len(xs) - 2) if len(xs) > 2 else None)

    @property
    def slope(self) -> float:
        """Of the course: never upwards."""
        return min(0.0, self.incline)

    def at(self, step: int) -> float:
        """The loss at `step`."""
        found = self.level + self.slope * (math.log(step) - self.centre)
        return math.exp(found) if self.power else found

    def error(self, step: int, *, variance: float) -> float:
        """Standard error of what the loss at `step` is above the course.

        Args:
            step: where the course is drawn on to.
            variance: of one loss about the course, as in `variance`.
        """
        far = (math.log(step) - self.centre) ** 2 / self.width if self.width else 0.0
        error = math.sqrt(variance * (1 / self.count + far + 1))
        return error * self.at(step) if self.power else error

    def rises(self, errors: float, *, variance: float) -> bool:
        """Whether the losses rise, by more than so many standard errors."""
        return self.incline * math.sqrt(self.width) > errors * math.sqrt(variance)

    def worth(self, steps: int, *, end: int) -> float:
        """What so many steps less make of the loss at step `end`, relative to the loss."""
        scale = 1.0 if self.power else abs(self.at(end))
        return -self.slope * steps / end / scale if scale else 0.0
