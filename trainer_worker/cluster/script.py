"""`python -m trainer_worker.cluster.script JSON SCRIPT ARGS`: a user's script in Ray Train workers. `nowcast submit` starts it.

The script runs unchanged as `__main__` in each worker, with the process group and the variables that torchrun would give it. A lost
worker or node costs a restart of all workers, as many as there is then room for. The script's checkpoints are where Ray Train has
them; or, if it knows nothing of Ray, in the folder NOWCAST_STORAGE, which stays the same. JSON is what `run_workers` takes.
"""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import ray
from ray.train import TrainingFailedError

from trainer_worker.errors import CommandFailed
from trainer_worker.training.ray_train import WORKER_ENVIRONMENT, run_workers


def main() -> None:
    """Run the script on the cluster this process belongs to; the exit status is its."""
    given, script, *arguments = sys.argv[1:]
    options = json.loads(given)
    ray.init(runtime_env={"env_vars": WORKER_ENVIRONMENT})
    try:
        run_workers(_run, {"script": script, "arguments": arguments, "storage": folder_of(**options)}, **options)
    except CommandFailed as error:
        sys.exit(str(error))
    except TrainingFailedError as error:
        sys.exit(f"the script failed: {error}")


def folder_of(name: str, storage: str | None, **_: Any) -> str | None:
    """NOWCAST_STORAGE: only where checkpoints go to a path, not to an object store."""
    return None if storage is None or "://" in storage else str(Path(storage).expanduser() / name)


def _run(config: dict[str, Any]) -> None:
    """In each worker."""
    script = Path(config["script"])
    if config["storage"] is not None:
        os.environ["NOWCAST_STORAGE"] = config["storage"]
        Path(config["storage"]).mkdir(parents=True, exist_ok=True)
    # the uploaded folder is where this process started, and on its path
    places = (Path(folder) / script for folder in (str(Path.cwd()), *sys.path))
    path = next((place for place in places if place.is_file()), script)
    sys.argv = [str(path), *config["arguments"]]
    sys.path.insert(0, str(path.parent))
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as left:
        if left.code not in (None, 0):
            raise RuntimeError(f"the script left with {left.code}") from left


if __name__ == "__main__":
    main()
