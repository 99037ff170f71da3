"""Find the questions in what a model wrote when it was asked for several, numbered."""

from __future__ import annotations

import re
from collections.abc import Iterator

_HEADER = re.compile(r"[\s*_#>\"]*(?:question|q)?\s*(?P<number>\d{1,2})[*_]*\s*[.):\-][*_]*\s+(?P<text>\S.*)", re.IGNORECASE)
_BULLET = re.compile(r"\s*[-*\u2022]\s+(?P<text>\S.*)")
_LABEL = re.compile(r"(?:question|q)\s*:\s*", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{2,}")
MIN_WORDS = 3
"""A question has at least this many words of two letters or more."""


def parse_questions(text: str, *, finished: bool) -> list[str]:
    """Read a list of questions.

    An item starts on a line of its own, with the number that is next in turn. Numbers anywhere else ("after 1945?", "GPT-3.5",
    "section 2.1", a line that happens to begin with "1984.") are words of a question. An item may run over several lines; a blank
    line ends it. Where nothing is numbered, bulleted lines that end with a question mark are taken; other lines are talk.

    Args:
        text: the model's output.
        finished: the model ended it by itself. If not, the last item may be cut off and is left out.

    Returns:
        The questions in order, each on one line, without number, bullet or emphasis around it. Empty if there are none.
    """
    items = list(_numbered_items(text)) or list(_bullet_items(text))
    if not finished and items and text.rstrip().endswith(items[-1].rstrip()):
        items.pop()
    return [question for item in items if _is_question(question := _clean(item))]


def _numbered_items(text: str) -> Iterator[str]:
    """Yield the text of each numbered item, its lines as they are."""
    expected, lines, is_open = 1, list[str](), False
    for line in text.splitlines():
        header = _HEADER.fullmatch(line)
        if header and int(header["number"]) == expected:
            if lines:
                yield "\n".join(lines)
            expected, lines, is_open = expected + 1, [header["text"]], True
        elif not line.strip():
            is_open = False
        elif is_open:
            lines.append(line)
    if lines:
        yield "\n".join(lines)


def _bullet_items(text: str) -> Iterator[str]:
    """Yield the text of each bulleted line that ends with a question mark, whatever emphasis follows it."""
    for line in text.splitlines():
        bullet = _BULLET.fullmatch(line)
        if bullet and bullet["text"].rstrip("*_\"' ").endswith("?"):
            yield bullet["text"]


def _clean(item: str) -> str:
    """Put an item on one line; take off a label, emphasis and quotes around it, and an answer that follows the question mark."""
    question = " ".join(item.split())
    if "?" in question:
        question = question[: question.rindex("?") + 1]
    question = question.strip("*_ ")
    question = question[label.end() :] if (label := _LABEL.match(question)) else question
    if question.count('"') % 2:  # one that was opened before the number, or closes it
        question = question.removeprefix('"') if question.startswith('"') else question.removesuffix('"')
    return question.strip("*_ ")


def _is_question(question: str) -> bool:
    return len(_WORD.findall(question)) >= MIN_WORDS
