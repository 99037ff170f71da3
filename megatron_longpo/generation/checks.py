"""The model looks at its own answers: as a judge that reads the chunk, and by the probability that it gives them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from megatron_longpo.generation.asking import Asker, Request, Step
from megatron_longpo.generation.engine import Engine
from megatron_longpo.generation.prompts import Prompts, join_context
from megatron_longpo.generation.settings import Sampling
from megatron_longpo.generation.work import Turn, Work

VERDICT = Sampling(temperature=0.0, max_new_tokens=8)
"""A word is asked for; some models open with a mark or a space."""
_YES_NO = re.compile(r"\W*(?P<word>yes|no)\b", re.IGNORECASE)
_A_B = re.compile(r"\W*(?:answer\s+)?(?P<word>[ab])\b", re.IGNORECASE)

Item = tuple[Work, Turn]


def judge_chosen(asker: Asker, engine: Engine, prompts: Prompts, items: Sequence[Item]) -> list[bool | None]:
    """Ask whether each chosen answer answers its question; None where the reply is neither yes nor no."""
    requests = []
    for work, turn in items:
        assert turn.chosen is not None
        message = prompts.ask_about_answer(work.text_of(turn.chunk), turn.question, turn.chosen.text)
        requests.append(Request(Step(work.document_id, turn.chunk.index, "judge-chosen"), message, 0))
    words = [_first_word(_YES_NO, answer.text) for answer in asker.complete(engine, requests, VERDICT)]
    return [None if word is None else word == "yes" for word in words]


def judge_pairs(asker: Asker, engine: Engine, prompts: Prompts, items: Sequence[Item]) -> list[bool | None]:
    """Ask which answer is better, in both orders, since judges have a favourite place.

    Returns:
        True where chosen is preferred in both orders, False where rejected is, None where the two replies disagree.
    """
    requests = []
    for work, turn in items:
        assert turn.chosen is not None
        assert turn.rejected is not None
        both = turn.chosen.text, turn.rejected.text
        for name, (first, second) in (("judge-pair", both), ("judge-pair-swapped", both[::-1])):
            message = prompts.ask_about_pair(work.text_of(turn.chunk), turn.question, first, second)
            requests.append(Request(Step(work.document_id, turn.chunk.index, name), message, 0))
    words = [_first_word(_A_B, answer.text) for answer in asker.complete(engine, requests, VERDICT)]
    verdicts: dict[tuple[str | None, str | None], bool] = {("a", "b"): True, ("b", "a"): False}
    return [verdicts.get((plain, swapped)) for plain, swapped in zip(words[::2], words[1::2], strict=True)]


def logprob_margins(asker: Asker, engine: Engine, items: Sequence[Item]) -> list[float]:
    """Compute log p(chosen | chunk, instruction) - log p(rejected | chunk, instruction), in nats."""
    requests, answers = [], []
    for work, turn in items:
        message = join_context(work.text_of(turn.chunk), turn.instruction)
        for side, answer in (("chosen", turn.chosen), ("rejected", turn.rejected)):
            assert answer is not None
            requests.append(Request(Step(work.document_id, turn.chunk.index, f"score-{side}"), message, 0))
            answers.append(answer.text)
    scores = asker.score(engine, requests, answers)
    return [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]


def _first_word(pattern: re.Pattern[str], reply: str) -> str | None:
    found = pattern.match(reply)
    return found["word"].lower() if found else None
