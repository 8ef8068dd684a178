"""What mkdocs cannot know by itself: tables made from the code, and pages that live elsewhere in the repository.

A line `<!-- generated: NAME -->` in a page is replaced by what `TABLES[NAME]` makes. Files of `PAGES` become pages, and links to
them, or to any other file of the repository, are pointed at their place on the site.
"""

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[1]
PAGES: Final = {
    "protos/WIRE.md": "wire.md",
    "nowcast_server/checkpoints/README.md": "model-card.md",
    "bench/acceleration/results/README.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
MARKER: Final = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
LINK: Final = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that live elsewhere, and the files of the repository that pages link to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for file in list(files.documentation_pages()):
        for target in LINK.findall(file.content_string):
            path = _resolve(file.src_uri, target)
            elsewhere = path not in PAGES and not path.startswith("docs/") and (ROOT / path).is_file()
            if elsewhere and files.get_file_from_path(f"files/{path}") is None:
                files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the tables, and point links at the site."""
    del config, files
    filled = MARKER.sub(lambda found: TABLES[found[1]](), markdown)
    return LINK.sub(lambda found: _on_site(page.file.src_uri, found[1]), filled)


def _resolve(page: str, target: str) -> str:
    """The path in the repository that a link of a page names."""
    source = next((source for source, name in PAGES.items() if name == page), f"docs/{page}")
    return os.path.normpath(Path(source).parent / target)


def _on_site(page: str, target: str) -> str:
    """A link as the site needs it."""
    path = _resolve(page, target)
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_file():
        return f"files/{path}"
    return target


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; what would end a cell is escaped."""
    names = list(head)
    lines = [names, ["---"] * len(names), *([" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _first_paragraph(docstring: str | None) -> str:
    return (docstring or "").strip().split("\n\n")[0]


def extras() -> str:
    """What can be installed besides the base."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = [("(none)", project["dependencies"]), *project["optional-dependencies"].items()]
    return _table(("extra", "installs"), ((f"`{name}`", ", ".join(map(_requirement, needs))) for name, needs in rows))


def _requirement(text: str) -> str:
    return f"`{re.split('[<>=!~ ;]', text)[0]}`"


def configuration() -> str:
    """Every key of a configuration."""
    from trainer_worker.training.config import TABLES as KEYS
    from trainer_worker.training.config import default_of

    parts = []
    for name, table in KEYS.items():
        rows = ((f"`{key}`", default_of(field), field.description or "") for key, field in table.model_fields.items())
        meaning = _first_paragraph(table.__doc__).partition(": ")[2]
        parts.append(f"## `[{name}]`\n\n{meaning}\n\n{_table(('key', 'default', 'meaning'), rows)}")
    return "\n\n".join(parts)


def settings() -> str:
    """Every setting of a server, and its variable."""
    from nowcast_server.settings import Settings

    meanings = dict(_arguments(Settings.__doc__ or ""))
    rows = (
        (f"`NOWCAST_{name.upper()}`", _shown(field.default), meanings.get(name, ""))
        for name, field in Settings.model_fields.items()
    )
    return _table(("variable", "default", "meaning"), rows)


def _shown(default: Any) -> str:
    from pydantic import ByteSize

    if isinstance(default, ByteSize):
        return f"`{default.human_readable(separator=' ')}`"
    return "" if default is None or default == () else f"`{default}`"


def _arguments(docstring: str) -> Iterator[tuple[str, str]]:
    """Name and meaning of each argument in a docstring; several that share one line share its meaning."""
    from griffe import Docstring, DocstringSectionKind

    for section in Docstring(docstring).parse("google", warnings=False):
        if section.kind is DocstringSectionKind.parameters:
            for each in section.value:
                yield from ((name.strip(), each.description) for name in each.name.split(","))


def commands() -> str:
    """The help of every command."""
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    import nowcast_server.cli
    import trainer_worker.cli

    parts = []
    for name, app in (("nowcast", trainer_worker.cli.app), ("nowcast-server", nowcast_server.cli.app)):
        command = get_command(app)
        context = command.make_context(name, ["--help"], resilient_parsing=True)
        parts.append(get_docs_for_click(obj=command, ctx=context, name=name))
    return re.sub(r"^#", "##", "\n\n".join(parts), flags=re.MULTILINE)


def http() -> str:
    """Every call of the HTTP API."""
    from nowcast_server.app import create_app
    from nowcast_server.settings import Settings

    paths = create_app(Settings()).openapi()["paths"]
    rows = (
        (f"`{method.upper()} {path}`", call.get("description") or call["summary"])
        for path, calls in sorted(paths.items())
        for method, call in calls.items()
    )
    return _table(("call", "what it does"), rows)


def metrics() -> str:
    """Every metric that a server exports."""
    from nowcast_server.metrics import Metrics

    rows = []
    for collector in Metrics().registry._collector_to_names:  # noqa: SLF001 -- prometheus-client tells labels in no other way
        (family,) = collector.describe()
        labels = ", ".join(f"`{label}`" for label in collector._labelnames)  # noqa: SLF001
        rows.append((f"`{family.name}{'_total' * (family.type == 'counter')}`", family.type, labels, family.documentation))
    return _table(("name", "type", "labels", "meaning"), rows)


def errors() -> str:
    """Every error code of the API."""
    from protos.errors import ERRORS

    found = sorted(ERRORS.items(), key=lambda item: (item[1].status, item[0]))
    return _table(
        ("code", "status", "Python", "meaning"),
        ((f"`{code}`", str(error.status), f"`{error.__name__}`", _first_paragraph(error.__doc__)) for code, error in found),
    )


def reasons() -> str:
    """Every reason for which a nowcast is skipped."""
    from trainer_worker.errors import REASONS

    return _table(("reason", "meaning"), ((f"`{reason}`", meaning) for reason, meaning in REASONS.items()))


def forecasters() -> str:
    """Every forecaster of the package."""
    from nowcast_server.forecasters.registry import FORECASTERS

    return _table(("name", "method"), ((f"`{name}`", _first_paragraph(each.__doc__)) for name, each in FORECASTERS.items()))


TABLES: Final[dict[str, Callable[[], str]]] = {
    each.__name__: each for each in (extras, configuration, settings, commands, http, metrics, errors, reasons, forecasters)
}
