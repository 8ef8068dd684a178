"""The processes that collect."""

import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from waiting import until

SCRIPT = """
    import os, sys, time
    from pathlib import Path
    from trainer_worker.metatrain import workers
    from trainer_worker.metatrain.collect import CollectConfig

    FOLDER = Path(sys.argv[1])


    def study(config: CollectConfig, number: int) -> str:
        (FOLDER / f"{number}.began").write_text(str(os.getpid()))
        if number == 0 and sys.argv[2] == "fail":
            raise OSError("disk full")
        time.sleep(60 if sys.argv[2] == "hang" else 0.2)
        return f"study {number}"


    if __name__ == "__main__":
        workers.collect_study = study
        workers.collect_local(CollectConfig(folder=FOLDER, studies=40, workers=1))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A collection whose studies only say that they began."""
    path = tmp_path / "collect_nothing.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return path


def test_no_process_outlives_a_killed_collection(script: Path, tmp_path: Path) -> None:
    """Its workers would train on, unheard, and write into the store of the collection that was started in its place."""
    process = subprocess.Popen([sys.executable, script, tmp_path, "hang"])
    try:
        began = tmp_path / "0.began"
        until(lambda: began.exists() and began.read_text())
        worker = psutil.Process(int(began.read_text()))
    finally:
        process.kill()
        process.wait()
    worker.wait(timeout=30)
    assert not worker.is_running()


def test_a_failed_study_ends_the_collection_at_once(script: Path, tmp_path: Path) -> None:
    """The reason would be told hours later, after all that was left to train."""
    ended = subprocess.run([sys.executable, script, tmp_path, "fail"], check=False, capture_output=True, text=True, timeout=120)
    assert ended.returncode
    assert "disk full" in ended.stderr
    assert len(list(tmp_path.glob("*.began"))) < 10
