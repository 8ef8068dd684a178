"""Templates into pages, and into the pieces that keep them up to date."""

import copy
import hashlib
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nowcast_server.jobs.course import STAGES, Place
from nowcast_server.map_picture import COLOURINGS, Embedded, draw, sentence
from nowcast_server.nino.cache import LruCache
from nowcast_server.nino.embed import Projection
from nowcast_server.tokens import ANONYMOUS
from nowcast_server.web.page import words
from nowcast_server.web.page.source import CourseView, JobView, MapView, Overview, ServerView
from protos.diagram import MAX_BLOCKS, draw_svg
from protos.messages import JobStatus
from protos.wiring import EdgeType, Wiring

FOLDER: Final = Path(__file__).parent
STATIC: Final = FOLDER / "static"
MAX_ROWS: Final = 400  # parameters shown of a wiring, which may be hostile
MOST_RUNS: Final = 60  # shown of a network on the map: the newest
FEWEST: Final = 3  # places, without which there are no two axes
SENTENCES: Final = 10
MAPS: Final = 256  # whose axes are kept
BUSY_S: Final = 5.0  # the device's use is that of the last so many seconds, at least
LOADED: Final = 16  # overviews that are remembered until their streams of events begin


class Renderer:
    """Writes pages. One for a server; `at` makes it one for a viewer, and the address a browser knows the server by."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        for name in ("figure", "share", "whole", "size", "duration", "clock", "saved", "polyline", "event", "reason"):
            self._environment.filters[name] = getattr(words, name)
        # browsers keep them for good, until they change
        files = b"".join(path.read_bytes() for path in sorted(STATIC.rglob("*.*")))
        self._environment.globals |= {"edition": hashlib.sha256(files).hexdigest()[:12], "stages": STAGES}
        self.maps = Maps()
        self._loaded = LruCache[dict[str, str]](LOADED)
        self._rows = LruCache[str](4096)
        self._used: dict[str, tuple[float, float]] = {}  # when a device's use was read, by replica, and what it was
        self._busy: dict[str, float] = {}
        self.base = self.url = ""  # of this server as its browsers see it
        self.tenant = ""  # who looks, where there are tokens

    def at(self, request: Request, *, tenant: str | None) -> Self:
        """The same, for whoever looks, and for links from the address of this request."""
        here = copy.copy(self)
        here.tenant = "" if tenant in (None, ANONYMOUS) else tenant
        here.base = request.scope.get("root_path", "").rstrip("/")
        here.url = str(request.base_url).rstrip("/")
        return here

    def overview(self, seen: Overview) -> str:
        rows = self._rows_of(seen.jobs)
        loaded = secrets.token_hex(8)  # under which its stream of events finds what need not be sent again
        self._loaded.get(loaded, lambda: rows)
        return self.write("overview.html", rows=rows.values(), busy=self._use(seen.servers), seen=seen, url=self.url, shown=loaded)

    def changes(self, seen: Overview, sent: dict[str, Any]) -> str:
        """What has changed on that page since `sent`, which is brought up to date; at first it may say what was `shown`."""
        rows = self._rows_of(seen.jobs)
        before = sent.get("rows") or self._loaded.get(sent.pop("shown", ""), dict)
        sent["rows"] = rows
        facts = self._pieces(sent, servers=self.write("servers.html", seen=seen, busy=self._use(seen.servers)))
        if list(rows) != list(before):
            return facts + _piece("#jobs", "innerHTML", "".join(rows.values()))
        changed = ((job.replace(".", "\\."), row) for job, row in rows.items() if before[job] != row)  # as selectors write it
        return facts + "".join(_piece(f"#job-{job}", "outerMorph", row) for job, row in changed)

    def job(self, course: CourseView, others: list[JobView]) -> str:
        return self._job("job", course, baseline(course, others))

    def job_changes(self, course: CourseView | None, others: list[JobView], sent: dict[str, Any]) -> str:
        """What has changed in the text of that page since `sent`; see `changes`."""
        if course is None:
            return self._pieces(sent, gone=self.write("gone.html"))
        other = baseline(course, others)
        return self._pieces(sent, gone="", **{name: self._job(name, course, other) for name in ("facts", "layers", "happenings")})

    def _pieces(self, sent: dict[str, Any], **texts: str) -> str:
        """Those texts, by the elements they stand in, that are not as they were `sent`."""
        changed = {name: text for name, text in texts.items() if sent.get(name, "") != text}
        sent.update(texts)
        return "".join(_piece(f"#{name}", "innerMorph", text) for name, text in changed.items())

    def _job(self, template: str, view: JobView, other: JobView | None) -> str:
        """A template about a job, and how many steps it has saved against another one."""
        estimate = None if other is None else words.steps_saved(view.curve, other.curve, job=other.job)
        return self.write(f"{template}.html", view=view, status=view.status, estimate=estimate)

    def _rows_of(self, jobs: list[JobView]) -> dict[str, str]:
        """Those that train first, then the newest."""
        shadows = [view for view in jobs if view.status.mode == "shadow"]
        jobs = sorted(jobs, key=lambda view: (view.state == "finished", -view.status.created_at, view.job))
        return {view.job: self._row(view, baseline(view, shadows)) for view in jobs}

    def _row(self, view: JobView, other: JobView | None) -> str:
        key = f"{self.base} {view.status.created_at} {view.job} {view.stamp} {other and (other.job, other.stamp)}"
        return self._rows.get(key, lambda: self._job("row", view, other))

    def _use(self, servers: list[ServerView]) -> dict[str, float]:
        """The share of the last seconds for which each replica's device forecast; nothing at the first look."""
        for server in servers:
            if (used_s := server.forecast_s) is not None:
                at, before_s = self._used.setdefault(server.name, (server.at, used_s))
                if server.at - at >= BUSY_S or used_s < before_s:
                    self._busy[server.name] = min(1.0, max(0.0, (used_s - before_s) / max(server.at - at, 1e-3)))
                    self._used[server.name] = (server.at, used_s)
        return self._busy

    def write(self, template: str, **values: Any) -> str:
        """A template with these values."""
        return self._environment.get_template(template).render(base=self.base, tenant=self.tenant, **values)


def _piece(target: str, swap: str, html: str) -> str:
    return f'<hx-partial hx-target="{target}" hx-swap="{swap}">{html}</hx-partial>'


def wiring_table(wiring: Wiring) -> dict[str, Any]:
    """A wiring's first parameters as `rows` of (name, shape, kinds of edges, how many), how many `more` there are, and a `picture`,
    an SVG, empty if there are too many blocks to draw. Takes a second for the largest.
    """
    kinds = [Counter[str]() for _ in wiring.parameters[:MAX_ROWS]]
    for block in wiring.blocks:
        if 0 <= block.parameter < MAX_ROWS:
            kinds[block.parameter][EdgeType(block.edge_type).words] += block.edges
    rows = [
        (parameter.name, " × ".join(map(str, parameter.shape)) or "scalar", ", ".join(held) or words.UNKNOWN, held.total())
        for parameter, held in zip(wiring.parameters, kinds, strict=False)
    ]
    picture = draw_svg(wiring) if len(wiring.blocks) <= MAX_BLOCKS else ""
    return {"rows": rows, "more": max(0, len(wiring.parameters) - MAX_ROWS), "picture": picture}


def baseline(view: JobView, others: list[JobView]) -> JobView | None:
    """What a job is compared with: the newest run of the same network whose forecasts are never used."""
    shadows = [each for each in others if each.status.mode == "shadow" and each.status.wiring_hash == view.status.wiring_hash]
    return max(shadows, key=lambda each: each.status.created_at, default=None) if view.status.mode != "shadow" else None


class Maps:
    """Draws maps. Axes are fitted to all places that are known, and anew once there are twice as many: in between nothing moves."""

    def __init__(self) -> None:
        self._axes: dict[tuple[str, str], tuple[int, Projection]] = {}

    def seen(self, view: MapView, *, tenant: str, network: str, by: str) -> dict[str, Any]:
        """What the template shows of the network whose hash begins so, or the newest run's. Takes 50 ms: not for an event loop."""
        networks = {status.wiring_hash[:12]: status.parameters for status, _ in reversed(view.runs)}
        chosen = network if network in networks else next(iter(networks), "")
        by = by if by in COLOURINGS else "loss"
        runs = [_embedded(*run) for run in view.runs if run[0].wiring_hash.startswith(chosen)][-MOST_RUNS:]
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


def _embedded(status: JobStatus, places: list[Place]) -> Embedded:
    steps, losses, vectors = zip(*places, strict=True)
    return Embedded(status.job, status.about.model_dump(), np.array(steps), np.array(losses), np.stack(vectors).astype(np.float64))
