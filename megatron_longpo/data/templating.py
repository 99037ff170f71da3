"""Chats as text, and where in that text each message's content stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from megatron_longpo.data.pair import Span
from megatron_longpo.data.tokenizer import ChatTokenizer, Message


class ContentNotFoundError(Exception):
    """The template changed a message's content beyond its surrounding white space, so it has no place in the text."""


def locate_contents(tokenizer: ChatTokenizer, messages: Sequence[Message], text: str, which: Iterable[int]) -> tuple[Span, ...]:
    """Find the contents of some messages in the rendered chat.

    The chat is rendered once more for each, with that content alone replaced by a probe that begins and ends with another
    character: the two texts agree up to where the content begins, and from where it ends. No search is involved, so it does
    not matter how often the same words occur elsewhere, nor what the template puts around them.

    Args:
        tokenizer: renders.
        messages: the chat.
        text: ``tokenizer.render(messages)``.
        which: indices of messages.

    Returns:
        For each, the ``[start, end)`` characters of its content, without surrounding white space.

    Raises:
        ContentNotFoundError: what stands there is not the content, or the content is blank.
    """
    return tuple(_locate(tokenizer, messages, text, index) for index in which)


def _locate(tokenizer: ChatTokenizer, messages: Sequence[Message], text: str, index: int) -> Span:
    content = messages[index]["content"].strip()
    if not content:
        raise ContentNotFoundError(f"message {index} is blank")
    probe = next(letter for letter in "abc" if letter not in (content[0], content[-1]))
    probed = [{**message, "content": probe} if i == index else message for i, message in enumerate(messages)]
    other = tokenizer.render(probed)
    start = common_prefix_length(text, other)
    end = len(text) - common_prefix_length(text[::-1], other[::-1])
    found = text[start:end]
    if found.strip() != content:
        raise ContentNotFoundError(f"message {index} is changed by the chat template")
    start += len(found) - len(found.lstrip())
    return start, start + len(content)


def common_prefix_length(first: str, second: str) -> int:
    """Length of the longest start that two strings share, by bisection (each comparison runs at memory speed)."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
