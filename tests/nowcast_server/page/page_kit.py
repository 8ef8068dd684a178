"""Jobs with a course, as workers would leave them, on an app in process."""

import json
import math
from typing import Any

from server_kit import dense

from nowcast_server.jobs.registry import Job
from nowcast_server.service import Service
from nowcast_server.tokens import ANONYMOUS
from protos.messages import Progress
from protos.wiring import Wiring


def register(client: Any, job: str, *, wiring: Wiring | None = None, headers: dict[str, str] | None = None, **changes: Any) -> None:
    """Register a job over HTTP."""
    spec = {"wiring": (wiring or dense()).to_dict(), "context": 3, "forecaster": "last", **changes}
    headers = {"content-type": "application/json", **(headers or {})}
    answer = client.put(f"/v1/jobs/{job}", content=json.dumps(spec), headers=headers)
    assert answer.status_code == 201, answer.text


def tell(service: Service, job: str, steps: range, *, tenant: str = ANONYMOUS, speed: float = 1.0, **changes: Any) -> Job:
    """Have the run of a job tell its progress at these steps: a falling loss, a gain, a coherence."""
    found = service.jobs.get(tenant, job)
    for step in steps:
        loss = 2.0 * math.exp(-speed * step / 400) + 0.1 + 0.02 * math.sin(step)
        progress = {"max_steps": 2000, "loss": loss, "gain": 0.7, "coherence": 0.4, "used": step // 10, **changes}
        found.tell(Progress(step=step, **progress))
    return found
