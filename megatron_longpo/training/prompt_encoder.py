"""Prompts and answers as tokens, by the tokenizer that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_longpo.conversion.record import ASSETS
from megatron_longpo.data.answer_packing import AnswerItem
from megatron_longpo.inference.engine import PromptTokenizer
from megatron_longpo.utils.errors import UserError


class PromptEncoder:
    """Prompts and answers as a model reads and writes them."""

    def __init__(self, tokenizer: PromptTokenizer, vocab_size: int, where: str) -> None:
        """Encode with a tokenizer, which lies at ``where``, for a model of so many words."""
        self.tokenizer = tokenizer
        self._vocab_size, self._where = vocab_size, where
        self._short = tokenizer.render_message("a")

    @classmethod
    def load(cls, checkpoint: str, vocab_size: int) -> PromptEncoder:
        """Read the tokenizer that a native checkpoint keeps.

        Raises:
            UserError: it keeps none, or one without a chat template or an end of a turn.
        """
        path = Path(checkpoint)
        folder = next((place / ASSETS for place in (path, path.parent) if (place / ASSETS).is_dir()), None)
        if folder is None:
            raise UserError(
                f"--eval-tasks: {path} keeps no tokenizer ({ASSETS}/); convert it with checkpoint_conversion/hf_to_mcore.py"
            )
        tokenizer = PromptTokenizer.load(folder)
        if tokenizer.tokenizer.eos_token is None:
            raise UserError(
                f"--eval-tasks: {folder}: the tokenizer names no eos_token, which ends an answer; add it to tokenizer_config.json"
            )
        return cls(tokenizer, vocab_size, str(folder))

    def encode(self, message: str, answers: Sequence[str], *, ended: bool) -> AnswerItem:
        """Encode a prompt and its right answers.

        Args:
            message: the user's.
            answers: at least one.
            ended: whether the end of the turn belongs to an answer.

        Raises:
            UserError: a token is none of the model's words.
        """
        prompt = np.array(self.tokenizer.encode_message(message), dtype=np.int32)
        found = AnswerItem(prompt, tuple(self._answer(answer, ended=ended) for answer in answers))
        largest = max(int(ids.max()) for ids in (prompt, *found.answers))
        if largest >= self._vocab_size:
            raise UserError(
                f"--eval-tasks: the tokenizer in {self._where} gives token {largest}, the model has {self._vocab_size} words; "
                "convert the model together with its own tokenizer"
            )
        return found

    def _answer(self, answer: str, *, ended: bool) -> np.ndarray:
        """Tokens of an answer after a prompt, of which only the template's end can matter, so a short one stands for it."""
        text = self.tokenizer.end_answer(answer) if ended else answer
        before, both = self.tokenizer.encode(self._short), self.tokenizer.encode(self._short + text)
        joins = both[: len(before)] == before and len(both) > len(before)
        return np.array(both[len(before) :] if joins else self.tokenizer.encode(text), dtype=np.int32)
