"""The IDX format of MNIST and its kin: two zero bytes, a type byte, the number of dimensions, their sizes, the values."""

import numpy as np
import numpy.typing as npt

UINT8 = 0x08


def parse_idx(content: bytes) -> npt.NDArray[np.uint8]:
    """The array in an IDX file of bytes, as a read-only view of `content`.

    Raises:
        ValueError: the content is not IDX, not of bytes, or not of the length its header says.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UINT8:
        raise ValueError("not an IDX file of unsigned bytes: it must start with 00 00 08")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError("not a whole IDX file: it ends in its header")
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
    if len(content) - start != np.prod(shape, dtype=np.int64):
        raise ValueError(f"an IDX file of shape {shape} must hold as many bytes, not {len(content) - start}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
