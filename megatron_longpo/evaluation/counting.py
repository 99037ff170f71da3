"""Aggregation (arXiv 2404.06654, section 3.3): the words that come most often in a long list, and in a coded text."""

from __future__ import annotations

import dataclasses
import random
import string
from collections.abc import Sequence

from megatron_longpo.evaluation.sample import NoRoomError, Sample, fill
from megatron_longpo.evaluation.sources import Sources
from megatron_longpo.evaluation.text import Haystack, draw_name
from megatron_longpo.inference.messages import join_message

NUM_COMMON = 10
REPEATS = {4096: (30, 3), 1024: (6, 1), 0: (4, 1)}
"""How often a common and any other word comes, from which length on. RULER has the first pair, which would overflow short
prompts; lm-eval has the second one there."""
EXAMPLE_REPEATS, EXAMPLE_OTHERS = (3, 1), 10

NUM_FREQUENT = 3
CODE_LETTERS = 6
ALPHA = 2.0
ZETA_OF_ALPHA = 1.6449340668482264
"""Sum of k ** -2: the k-th most frequent word has a share of k ** -2 / this."""
TOKENS_PER_WORD = 50
"""A text of n tokens is drawn from n / 50 words, as RULER's."""
FILLER = "..."


@dataclasses.dataclass(frozen=True)
class CommonWordsTask:
    """RULER's `cwe`: ten words come often in a numbered list, the others seldom. One solved example before it, as there.

    Words are the haystack's own; where its vocabulary cannot fill a list of the wanted length, pairs of words with a hyphen.
    Answers get 160 tokens; RULER's 120 come after an opening that it writes for the model.
    """

    name: str = "cwe"
    answer_tokens: int = 160

    def make(self, sources: Sources, length: int, index: int) -> Sample:
        """Make a sample; see `sources.Task`."""
        budget = length - self.answer_tokens
        repeats = next(pair for least, pair in REPEATS.items() if length >= least)
        rng = sources.random(self.name, length, index)
        order = rng.getrandbits(64)
        singles = rng.sample(sources.haystack.vocabulary, len(sources.haystack.vocabulary))
        example = singles[-NUM_COMMON - EXAMPLE_OTHERS :]
        question = "Which ten words come most often in the list? Reply with these ten words only, separated by commas."
        solved = join_message(
            "An example:", _list(example, EXAMPLE_REPEATS, order), question, ", ".join(example[:NUM_COMMON]), "The list:"
        )

        def build(words: Sequence[str], before: str) -> str:
            introduction = "Below is a numbered list of words. Some words come in it much more often than the others."
            return join_message(introduction, before, _list(words, repeats, order), question)

        def fit(words: _Words, before: str) -> int:
            count = lambda number: sources.count(build(words.take(number), before))  # noqa: E731
            return fill(count, budget, least=NUM_COMMON + 1, most=words.most)

        single = singles[: len(singles) - len(example)]
        words = _Words(single, None, rng)
        if sources.count(build(single, solved)) <= budget:
            words = _Words([], sources.haystack, rng)
        try:
            before = solved
            number = fit(words, before)
        except NoRoomError:  # in the shortest prompts there is room for the task alone
            before = ""
            number = fit(words, before)
        message = build(words.take(number), before)
        return Sample(
            message=message,
            question=question,
            expected=tuple(words.take(NUM_COMMON)),
            prompt_tokens=sources.count(message),
        )


class _Words:
    """Different words, the same whatever number is taken: the given ones, or pairs out of a haystack without end."""

    def __init__(self, words: Sequence[str], haystack: Haystack | None, rng: random.Random) -> None:
        self._words = list(words)
        self._known = set(words)
        self._haystack, self._rng = haystack, rng
        self.most = None if haystack else len(words)

    def take(self, number: int) -> list[str]:
        while self._haystack is not None and len(self._words) < number:
            word = draw_name(self._haystack, self._rng)
            if word not in self._known:
                self._known.add(word)
                self._words.append(word)
        return self._words[:number]


def _list(words: Sequence[str], repeats: tuple[int, int], order: int) -> str:
    """Number the words, the first ten of them often, in a random order."""
    often, seldom = repeats
    listed = [*(list(words[:NUM_COMMON]) * often), *(list(words[NUM_COMMON:]) * seldom)]
    random.Random(order).shuffle(listed)
    return " ".join(f"{number}. {word}" for number, word in enumerate(listed, start=1))


@dataclasses.dataclass(frozen=True)
class FrequentWordsTask:
    """RULER's `fwe`: made-up words whose frequencies fall as a zeta distribution; which three come most often?

    The most frequent of all is three dots, which the question says to ignore. Answers get 64 tokens (RULER's 50 come after an
    opening that it writes for the model).
    """

    name: str = "fwe"
    answer_tokens: int = 64

    def make(self, sources: Sources, length: int, index: int) -> Sample:
        """Make a sample; see `sources.Task`."""
        rng = sources.random(self.name, length, index)
        codes = [FILLER, *_draw_codes(rng, max(NUM_FREQUENT + 2, length // TOKENS_PER_WORD))]
        order = rng.getrandbits(64)
        introduction = "The text below is in a code. Keep count of how often each coded word comes in it."
        question = (
            f"Ignore the dots ({FILLER}). Which three coded words come most often in the text above? "
            "Reply with these three words only, separated by commas, without any explanation."
        )

        def build(number: int) -> str:
            return join_message(introduction, _coded_text(codes, number, order), question)

        number = fill(lambda number: sources.count(build(number)), length - self.answer_tokens, least=_FEWEST_CODED)
        message = build(number)
        return Sample(
            message=message,
            question=question,
            expected=tuple(codes[1 : 1 + NUM_FREQUENT]),
            prompt_tokens=sources.count(message),
        )


_FEWEST_CODED = 53
"""From here on the third and the fourth word differ in number whatever the size of the text."""


def _draw_codes(rng: random.Random, number: int) -> list[str]:
    codes: dict[str, None] = {}
    while len(codes) < number:
        codes["".join(rng.choices(string.ascii_lowercase, k=CODE_LETTERS))] = None
    return list(codes)


def _coded_text(codes: Sequence[str], number: int, order: int) -> str:
    """Write each code as often as the zeta distribution has it among ``number`` words, rounded down, in a random order."""
    text = [code for rank, code in enumerate(codes, start=1) for _ in range(int(number * rank**-ALPHA / ZETA_OF_ALPHA))]
    random.Random(order).shuffle(text)
    return " ".join(text)
