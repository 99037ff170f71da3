"""Chats as text, and where in that text each message's content stands."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_longpo.data.pair import Span
from megatron_longpo.data.tokenizer import ChatTokenizer, Message


class ContentNotFoundError(Exception):
    """The template changed a message's content beyond its surrounding white space, so it has no place in the text."""


class ChatTemplate:
    """Renders chats and knows where their contents stand.

    What the template writes between the contents is remembered for each sequence of roles: a chat that is these stretches and
    its contents in turn needs no further rendering. Where a template writes anything else for some contents, they are located
    one by one.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        """Render with a tokenizer's template."""
        self._tokenizer = tokenizer
        self._stretches: dict[tuple[str, ...], list[str] | None] = {}

    def render(self, messages: Sequence[Message]) -> tuple[str, tuple[Span, ...]]:
        """Render a chat.

        Returns:
            The text, and for each message the ``[start, end)`` characters of its content, without surrounding white space.

        Raises:
            ContentNotFoundError: what stands there is not the content, or a content is blank.
        """
        text = self._tokenizer.render(messages)
        contents = [message["content"] for message in messages]
        stretches = self._between([message["role"] for message in messages])
        stripped = [content.strip() for content in contents]
        if stretches is not None and all(stripped):
            for written in (contents, stripped):
                starts = _match(text, stretches, written)
                if starts is not None:
                    leads = [len(content) - len(content.lstrip()) for content in written]
                    places = zip(starts, leads, stripped, strict=True)
                    return text, tuple((start + lead, start + lead + len(content)) for start, lead, content in places)
        return text, tuple(locate_content(self._tokenizer, messages, text, index) for index in range(len(messages)))

    def _between(self, roles: Sequence[str]) -> list[str] | None:
        """The template's text before, between and behind contents; None if it does not keep words of their own apart."""
        key = tuple(roles)
        if key not in self._stretches:
            probes = [f"Probe{index}x" for index in range(len(roles))]
            chat = [{"role": role, "content": probe} for role, probe in zip(roles, probes, strict=True)]
            self._stretches[key] = _split_at(self._tokenizer.render(chat), probes)
        return self._stretches[key]


def _split_at(text: str, probes: Sequence[str]) -> list[str] | None:
    """What stands around the probes, if each is there once and in order."""
    stretches = []
    for probe in probes:
        before, found, after = text.partition(probe)
        if not found or probe in after:
            return None
        stretches.append(before)
        text = after
    return [*stretches, text]


def _match(text: str, stretches: Sequence[str], contents: Sequence[str]) -> list[int] | None:
    """Where the contents begin in a text that is stretches and contents in turn; None if it is not."""
    starts, position = [], 0
    for stretch, content in zip(stretches, contents, strict=False):
        start = position + len(stretch)
        position = start + len(content)
        if text[start - len(stretch) : start] != stretch or text[start:position] != content:
            return None
        starts.append(start)
    return starts if text[position:] == stretches[-1] else None


def locate_content(tokenizer: ChatTokenizer, messages: Sequence[Message], text: str, index: int) -> Span:
    """Find one message's content in the rendered chat.

    The chat is rendered once more with that content alone replaced by a probe that begins and ends with another character: the
    two texts agree up to where the content begins, and from where it ends. No search is involved, so it does not matter how
    often the same words occur elsewhere, nor what the template puts around them.

    Args:
        tokenizer: renders.
        messages: the chat.
        text: ``tokenizer.render(messages)``.
        index: of the message.

    Returns:
        The ``[start, end)`` characters of its content, without surrounding white space.

    Raises:
        ContentNotFoundError: what stands there is not the content, or the content is blank.
    """
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
