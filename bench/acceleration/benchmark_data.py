"""The data sets that only the benchmark uses: silhouettes of animals, Wikipedia's articles, two photographs."""

import bz2
import html
import re
from io import BytesIO
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer_worker.metatrain.datasets import PythonWheel
from trainer_worker.tasks.data import DataFile, Dataset, read

ANIMALS: Final = Dataset(
    name="animals",
    licence="MIT",
    files=(
        DataFile("animal_data_version_3.gz", "0a13908291891bf5b97b18427cf0eceedcb720959826cc85f7e06dc89e5eaf77"),
        DataFile("animal_label_version_3.gz", "3d826227c39b7dba09abb8273cf07928443fec2c56b6396b4872741b7b332f93"),
    ),
    sources=(PythonWheel("animal-shape-mnist==0.39", "animal_shape_mnist/data/Animal Shape"),),
)
PICKLED: Final = 10_000
"""Examples in each pickle."""
PICKLE_END: Final = 14
"""Bytes that follow an array's values in its pickle."""

WIKIPEDIA: Final = Dataset(
    name="wikipedia",
    licence="CC BY-SA",
    files=(
        DataFile(
            "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
            "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
        ),
    ),
    sources=(PythonWheel("gensim==4.4.0", "gensim/test/test_data"),),
)
_ARTICLE = re.compile(r"<text[^>]*>(.*?)</text>", re.DOTALL)
_INNERMOST = re.compile(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}|\[\[(?:File|Image|Category):[^\[\]]*\]\]")
_DROPPED = re.compile(r"<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>|<math.*?</math>|</?[a-z][^>]*>|'{2,}|https?://\S+", re.DOTALL)
_LINK = re.compile(r"\[\[(?!File:|Image:|Category:)(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")

PHOTOGRAPHS: Final = Dataset(
    name="photographs",
    licence="CC-BY",
    files=(
        DataFile("china.jpg", "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29"),
        DataFile("flower.jpg", "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638"),
    ),
    sources=(PythonWheel("scikit-learn==1.9.1", "sklearn/datasets/images"),),
)


def animals() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """9,716 silhouettes of ten animals without exact duplicates, (9716, 28, 28), and their classes (9716,).

    Raises:
        DataMissing: no source has them.
    """
    pictures, classes = read(ANIMALS).values()
    images = _values(pictures, "u1", 28 * 28)
    labels = _values(classes, "<i8", 1)[:, 0].astype(np.uint8)
    _, first = np.unique(images, axis=0, return_index=True)
    kept = np.sort(first)
    return images[kept].reshape(-1, 28, 28), labels[kept]


def _values(pickle: bytes, dtype: str, width: int) -> npt.NDArray[np.uint8]:
    """The array in a pickle of known content: its values lie in one piece at the end, and nothing is unpickled."""
    size = PICKLED * width * np.dtype(dtype).itemsize
    return np.frombuffer(pickle[-size - PICKLE_END : -PICKLE_END], dtype=dtype).reshape(PICKLED, width)


def wikipedia() -> str:
    """105 articles of the English Wikipedia as plain text, without templates, tables, references and links' targets.

    Raises:
        DataMissing: no source has them.
    """
    (content,) = read(WIKIPEDIA).values()
    articles = (html.unescape(match.group(1)) for match in _ARTICLE.finditer(bz2.decompress(content).decode("utf-8")))
    return "\n".join(_plain(article) for article in articles if not article.lstrip().upper().startswith("#REDIRECT"))


def _plain(article: str) -> str:
    text, found = _DROPPED.sub("", article), 1
    while found:  # from the innermost brackets outwards
        text, dropped = _INNERMOST.subn("", text)
        text, found = _LINK.subn(r"\1", text)
        found += dropped
    return re.sub(r"\n{3,}", "\n\n", text)


def photographs() -> list[npt.NDArray[np.float32]]:
    """Two photographs that scikit-learn carries, each (height, width, 3), from 0 to 1.

    Raises:
        DataMissing: no source has them.
    """
    from PIL import Image

    contents = read(PHOTOGRAPHS).values()
    return [np.asarray(Image.open(BytesIO(content)).convert("RGB"), dtype=np.float32) / 255 for content in contents]
