"""`python -m trainer_worker.cluster.script`: run a user's script in Ray Train workers. Started on the cluster by `nowcast submit`.

The script is the user's own, unchanged: it runs as `__main__` in each worker, with the process group and the variables that
torchrun would give it (RANK, WORLD_SIZE, LOCAL_RANK, …). A worker or node that is lost costs a restart of all workers, as many as
there is then room for. The script finds its checkpoints by `ray.train.get_checkpoint()` and keeps them by `ray.train.report()`; or,
if it knows nothing of Ray, in the folder NOWCAST_STORAGE, which stays the same over restarts.
"""

import argparse
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import ray
from ray.train import TrainingFailedError

from trainer_worker.cluster.submission import parse_workers
from trainer_worker.training.ray_train import WORKER_ENVIRONMENT, run_workers
from trainer_worker.training.storage import StorageUnusable


def main(arguments: list[str] | None = None) -> None:
    """Run the script on the cluster this process belongs to; the exit status is its."""
    options = _parser().parse_args(arguments)
    ray.init(runtime_env={"env_vars": WORKER_ENVIRONMENT})
    try:
        run_workers(
            _run,
            {"script": options.script, "arguments": options.arguments, "storage": _folder(options)},
            name=options.name,
            storage=options.storage,
            workers=parse_workers(options.workers),
            cpus=options.cpus,
            gpus=options.gpus,
            max_failures=options.max_failures,
        )
    except StorageUnusable as error:
        sys.exit(str(error))
    except TrainingFailedError as error:
        sys.exit(f"the script failed: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--workers", default="1:1")
    parser.add_argument("--max-failures", type=int, default=3)
    parser.add_argument("--cpus", type=float, default=1)
    parser.add_argument("--gpus", type=float, default=0)
    parser.add_argument("--storage")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def _folder(options: argparse.Namespace) -> str | None:
    """NOWCAST_STORAGE: only where checkpoints go to a path, not to an object store."""
    if options.storage is None or "://" in options.storage:
        return None
    return str(Path(options.storage).expanduser() / options.name)


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
