"""The model looks at its own answers: as a judge that reads the chunk, and by the probability that it gives them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from megatron_longpo.generation.prompts import Prompts, join_context
from megatron_longpo.generation.work import Turn, Work
from megatron_longpo.inference.asking import Asker, Request, Step
from megatron_longpo.inference.engine import Engine
from megatron_longpo.inference.sampling import Sampling

VERDICT = Sampling(temperature=0.0, max_new_tokens=8)
"""A word is asked for; some models open with a mark or a space."""
_YES_NO = re.compile(r"\W*(?P<word>yes|no)\b", re.IGNORECASE)
_A_B = re.compile(r"\W*(?:answer\W+)?(?P<word>[ab])(?:\W*$|[.:,;)*\n])", re.IGNORECASE)

Item = tuple[Work, Turn]
Fits = Callable[[str, int], bool]
"""Whether a message and so many tokens of an answer fit into the context."""


def judge_chosen(asker: Asker, engine: Engine, prompts: Prompts, items: Sequence[Item], fits: Fits) -> list[bool | None]:
    """Ask whether each chosen answer answers its question; None where the reply is neither yes nor no."""
    messages = []
    for work, turn in items:
        assert turn.chosen is not None
        messages.append(prompts.ask_about_answer(work.text_of(turn.chunk), turn.question, turn.chosen.text))
    words = _ask(asker, engine, [(item, "judge-chosen", text) for item, text in zip(items, messages, strict=True)], fits, _YES_NO)
    return [None if word is None else word == "yes" for word in words]


def judge_pairs(asker: Asker, engine: Engine, prompts: Prompts, items: Sequence[Item], fits: Fits) -> list[bool | None]:
    """Ask which answer is better, in both orders, since judges have a favourite place.

    Returns:
        True where chosen is preferred in both orders, False where rejected is, None where the two replies disagree.
    """
    asked = []
    for work, turn in items:
        assert turn.chosen is not None
        assert turn.rejected is not None
        both = turn.chosen.text, turn.rejected.text
        for name, (first, second) in (("judge-pair", both), ("judge-pair-swapped", both[::-1])):
            message = prompts.ask_about_pair(work.text_of(turn.chunk), turn.question, first, second)
            asked.append(((work, turn), name, message))
    words = _ask(asker, engine, asked, fits, _A_B)
    verdicts: dict[tuple[str | None, str | None], bool] = {("a", "b"): True, ("b", "a"): False}
    return [verdicts.get((plain, swapped)) for plain, swapped in zip(words[::2], words[1::2], strict=True)]


def _ask(
    asker: Asker, engine: Engine, asked: Sequence[tuple[Item, str, str]], fits: Fits, pattern: re.Pattern[str]
) -> list[str | None]:
    """Return the first word of each reply that is one of the pattern's; None also where a prompt does not fit."""
    fitting = {place: entry for place, entry in enumerate(asked) if fits(entry[2], VERDICT.max_new_tokens)}
    requests = [
        Request(Step(work.document_id, turn.chunk.index, name), message, 0) for (work, turn), name, message in fitting.values()
    ]
    replies = dict(zip(fitting, asker.complete(engine, requests, VERDICT), strict=True))
    return [_first_word(pattern, replies[place].text) if place in replies else None for place in range(len(asked))]


def logprob_margin(asker: Asker, engine: Engine, work: Work, turn: Turn) -> float | None:
    """Compute log p(chosen | chunk, instruction) - log p(rejected | chunk, instruction), in nats; None without either."""
    message = join_context(work.text_of(turn.chunk), turn.instruction)
    scores = []
    for side, answer in (("chosen", turn.chosen), ("rejected", turn.rejected)):
        assert answer is not None
        request = Request(Step(work.document_id, turn.chunk.index, f"score-{side}"), message, 0)
        scores.append(asker.score(engine, request, answer.text))
    chosen, rejected = scores
    return None if chosen is None or rejected is None else chosen - rejected


def _first_word(pattern: re.Pattern[str], reply: str) -> str | None:
    found = pattern.match(reply)
    return found["word"].lower() if found else None
