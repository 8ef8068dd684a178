"""Names of jobs, made from those of files, folders and submissions."""

from typing import Final

LONGEST: Final = 80
"""Beginning of a run's id, which says what it is; the server takes 128 letters in all."""


def plain_name(text: str, *, most: int) -> str:
    """Letters, digits and hyphens, at most so many; the same for the same text."""
    name = "".join(letter if letter.isalnum() else "-" for letter in text)
    return name[:most].strip("-") or "job"
