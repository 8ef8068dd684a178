"""105 articles of the English Wikipedia, 2.9 MB of text, as gensim's tests carry them (CC BY-SA)."""

import bz2
import html
import re
from pathlib import Path
from typing import Final

from trainer_worker.datasets.dataset import DataFile, Dataset, read
from trainer_worker.datasets.wheel import PythonWheel

DUMP: Final = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"

WIKIPEDIA: Final = Dataset(
    name="wikipedia",
    licence="CC BY-SA",
    files=(DataFile(DUMP, "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"),),
    sources=(PythonWheel("gensim==4.4.0", {DUMP: f"gensim/test/test_data/{DUMP}"}),),
)

_ARTICLE = re.compile(r"<text[^>]*>(.*?)</text>", re.DOTALL)
_INNERMOST = re.compile(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}|\[\[(?:File|Image|Category):[^\[\]]*\]\]")
_DROPPED = re.compile(r"<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>|<math.*?</math>|</?[a-z][^>]*>|'{2,}|https?://\S+", re.DOTALL)
_LINK = re.compile(r"\[\[(?!File:|Image:|Category:)(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")


def wikipedia(path: str | Path | None = None) -> str:
    """The articles as plain text, one after the other, without templates, tables, references and links' targets.

    Raises:
        DataMissing: no source has them.
    """
    dump = bz2.decompress(read(WIKIPEDIA, path=path).contents[DUMP]).decode("utf-8")
    articles = (html.unescape(match.group(1)) for match in _ARTICLE.finditer(dump))
    return "\n".join(_plain(article) for article in articles if not article.lstrip().upper().startswith("#REDIRECT"))


def _plain(article: str) -> str:
    text, found = _DROPPED.sub("", article), 1
    while found:  # from the innermost brackets outwards
        text, dropped = _INNERMOST.subn("", text)
        text, found = _LINK.subn(r"\1", text)
        found += dropped
    return re.sub(r"\n{3,}", "\n\n", text)
