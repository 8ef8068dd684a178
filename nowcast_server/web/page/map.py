"""The map of training on the page: of the runs of one network, with axes that stay."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from nowcast_server.map_picture import COLOURINGS, Embedded, draw, sentence
from nowcast_server.nino.embed import Projection
from nowcast_server.web.page.source import MapView, RunView

MOST_RUNS: Final = 60
"""Shown of a network: the newest."""
FEWEST: Final = 3
"""Places, without which there are no two axes."""
SENTENCES: Final = 10
MAPS: Final = 256
"""Whose axes are kept."""


class Maps:
    """Draws maps. Axes are fitted to all places that are known, and anew once there are twice as many: in between nothing moves."""

    def __init__(self) -> None:
        self._axes: dict[tuple[str, str], tuple[int, Projection]] = {}

    def seen(self, view: MapView, *, tenant: str, network: str, by: str) -> dict[str, Any]:
        """What the template shows of the network whose hash begins so, or the newest run's. Takes 50 ms: not for an event loop."""
        networks = {run.network[:12]: run.parameters for run in reversed(view.runs)}
        chosen = network if network in networks else next(iter(networks), "")
        by = by if by in COLOURINGS else "loss"
        runs = [_embedded(run) for run in view.runs if run.network.startswith(chosen)][-MOST_RUNS:]
        told = {"embeds": view.embeds, "networks": networks, "chosen": chosen, "by": by, "colourings": COLOURINGS}
        if sum(len(run.steps) for run in runs) < FEWEST:
            return {**told, "picture": "", "sentences": []}
        axes = self._axes_of(runs, (tenant, chosen))
        picture = draw(runs, [axes.apply(run.vectors) for run in runs], by=by, shares=tuple(axes.explained))
        said = [sentence(run, runs[:index]) for index, run in enumerate(runs)]
        return {**told, "picture": picture, "sentences": [each for each in reversed(said) if each][:SENTENCES]}

    def _axes_of(self, runs: Sequence[Embedded], key: tuple[str, str]) -> Projection:
        vectors = np.concatenate([run.vectors for run in runs])
        count, axes = self._axes.get(key, (0, None))
        if axes is None or len(vectors) >= 2 * count:
            if len(self._axes) >= MAPS:
                self._axes.clear()
            axes = Projection.fit(vectors)
            self._axes[key] = (len(vectors), axes)
        return axes


def _embedded(run: RunView) -> Embedded:
    steps, losses, vectors = zip(*run.places, strict=True)
    rows = np.stack([np.frombuffer(vector, dtype=np.float32) for vector in vectors]).astype(np.float64)
    return Embedded(run.job, run.about.model_dump(), np.array(steps), np.array(losses), rows)
