"""Names of jobs: which ids the runs of a submission have at a server, and how they are known again."""

import uuid
from typing import Final

LONGEST: Final = 64  # letters of the submission in a run's id; the server takes 128 in all
LONGEST_PART: Final = 20


def plain_name(text: str, *, most: int) -> str:
    """ASCII letters, digits and hyphens, at most so many, which a server takes; the same for the same text."""
    name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)
    return name[:most].strip("-") or "job"


def job_id(submission: str, *parts: str) -> str:
    """A new id that begins with the submission's name; up to two parts say which of its runs."""
    start = [plain_name(submission, most=LONGEST), *(plain_name(part, most=LONGEST_PART) for part in parts)]
    return "-".join([*start, uuid.uuid4().hex[:12]])
