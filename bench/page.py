"""The live page with many jobs: how soon it is painted, how long an update takes, and what a viewer costs the server.

    python bench/page.py                  # 200 jobs of 511 points each, which tell another one every 10 seconds
    python bench/page.py --every 2

The server is a process of its own. Chromium (Debian's, headless) opens the overview and a job's page: an update takes as long as
the longest task of the page's main thread after it was loaded. A viewer costs the CPU time of the server with `--viewers` pages
open, less that with none, divided by their number.
"""

import argparse
import asyncio
import math
import os
import socket
import subprocess
import sys
import time
from shutil import which
from typing import Any
from urllib.request import urlopen

import psutil

POINTS = 511
"""Told at the start; one more, and a server halves them."""
SETTLED_S = 3.0
"""After which a page is loaded, and what follows are updates."""
WATCH = """window.tasks = [];
const watching = new PerformanceObserver((list) => list.getEntries().forEach((each) => tasks.push(each.duration)));
watching.observe({type: "longtask", buffered: true});
return performance.getEntriesByName("first-contentful-paint")[0].startTime;"""


async def serve(jobs: int, every_s: float) -> None:
    """Run the server, whose jobs tell their progress; its port is printed once they are there."""
    from torch import nn

    from nowcast_server.app import create_app
    from nowcast_server.running import server_for
    from nowcast_server.settings import Settings
    from nowcast_server.tokens import ANONYMOUS
    from protos.messages import JobSpec, Progress
    from trainer_worker.wiring import wire

    settings = Settings(max_jobs=jobs + 1, tenant_jobs=jobs + 1)
    app = create_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server_for(app, settings).serve(sockets=[listener]))
    while not app.state.service.ready:  # noqa: ASYNC110 -- nothing else waits here
        await asyncio.sleep(0.05)
    spec = JobSpec(wiring=wire(nn.Sequential(*(nn.Linear(16, 16) for _ in range(12)))), forecaster="linear")
    runs = []
    for index in range(jobs):
        as_told = spec.model_copy(update={"mode": "glide" if index else "shadow"})  # the first is what the others are compared with
        runs.append((await app.state.service.register(ANONYMOUS, f"team-{index % 7}.run-{index}", spec=as_told))[0])

    def tell(index: int, point: int) -> None:
        loss = 2 * math.exp(-point / 150) + 0.1 + 0.02 * math.sin(point * (index + 1))
        layers = {f"{each}": math.cos(each + index) for each in range(12)}
        told = Progress(step=10 * point, max_steps=10_000, loss=loss, gain=0.8, coherence=0.4, layers=layers, used=point)
        runs[index].tell(told)
        runs[index].touch()

    for index in range(jobs):
        for point in range(1, POINTS + 1):
            tell(index, point)
    print(listener.getsockname()[1], flush=True)
    point = POINTS
    while not serving.done():
        point += 1
        for index in range(jobs):
            tell(index, point)
            await asyncio.sleep(every_s / jobs)


def open_browser() -> Any:
    """A window of Chromium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(which("chromedriver"))))
    driver.get("data:text/plain,warm")
    return driver


def busy_ms(driver: Any) -> float:
    """CPU time of the page's main thread so far, which does not depend on what else the machine does."""
    metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return 1000 * float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))


def look(driver: Any, url: str, *, seconds: float) -> str:
    """Open a page, and watch it for a while."""
    driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    driver.get(url)
    time.sleep(SETTLED_S)
    painted_ms = driver.execute_script(WATCH)
    time.sleep(0.5)
    first, loaded = driver.execute_script("return tasks.splice(0)"), busy_ms(driver)
    time.sleep(seconds)
    later, ended = driver.execute_script("return tasks"), busy_ms(driver)
    shown = [f"{max(tasks):.0f} ms" if tasks else "under 50 ms" for tasks in (first, later)]
    cpu = f"its main thread takes {loaded:.0f} ms of CPU to load, {(ended - loaded) / seconds:.1f} ms a second afterwards"
    return f"first paint {painted_ms:.0f} ms; longest task {shown[0]} while loading, {shown[1]} afterwards; {cpu}"


def share_of_core(server: psutil.Process, *, seconds: float) -> float:
    """CPU time that the server takes, for each second."""
    before = sum(server.cpu_times()[:2])
    time.sleep(seconds)
    return float(sum(server.cpu_times()[:2]) - before) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two points of a job")
    parser.add_argument("--viewers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(given.jobs, given.every))
        return
    command = [sys.executable, __file__, "--serve", "--jobs", str(given.jobs), "--every", str(given.every)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        pages = {"overview": url, "a job's page": f"{url}/jobs/team-1.run-1"}
        try:
            server = psutil.Process(process.pid)
            for name, page in pages.items():
                before = sum(server.cpu_times()[:2])
                urlopen(page).read()
                print(
                    f"{name}: the server takes {1000 * (sum(server.cpu_times()[:2]) - before):.0f} ms of CPU to write it",
                    flush=True,
                )
                driver = open_browser()
                print(f"{name}: {look(driver, page, seconds=given.seconds)}", flush=True)
                driver.quit()
            alone = share_of_core(server, seconds=given.seconds)
            for name, page in pages.items():
                viewers = [subprocess.Popen(["curl", "-sNo", "/dev/null", f"{page}/events"]) for _ in range(given.viewers)]
                time.sleep(SETTLED_S)
                each = (share_of_core(server, seconds=given.seconds) - alone) / given.viewers
                print(f"{name}: a viewer costs the server {each:.2%} of a core (without viewers it takes {alone:.2%})", flush=True)
                for viewer in viewers:
                    viewer.kill()
                    viewer.wait()
        finally:
            process.terminate()
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
