"""The words that are put to the model: Jinja2 templates of our own, which a user may replace.

A context and what is asked about it are joined by a blank line, always: training reads a pair in the same form.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from megatron_longpo.inference.messages import join_message
from megatron_longpo.utils.errors import UserError

LEAD_INS = (
    "Going by the text above, answer this:",
    "With the text above as your only source, answer the following.",
    "Here is a question about what you have just read.",
    "The answer to this question is in the text above.",
    "From what the text above says:",
    "Look back at the text above and answer.",
    "Keeping to what is written above, reply to this question.",
    "Having read the above, answer this question.",
    "Use the passage you were given to answer:",
    "This question is about the text that precedes it.",
    "Rely on the preceding text for your answer.",
    "In the light of the text above:",
)
"""Phrases that tie a question to the text before it; one is drawn for each question."""

# One paragraph each: small models take a list of rules for a text to be continued.
QUESTIONS = (
    "Write {{ count }} questions in English about the text above. Each question should join several parts of the text and test "
    "how well a reader has understood it. Write only the questions, one on each line, numbered from 1 to {{ count }}."
)
INSTRUCTION = "{{ lead_in }} {{ question }}"
JUDGE_ANSWER = (
    "Question about the text above: {{ question }}\n\nProposed answer: {{ answer }}\n\n"
    "Does the proposed answer really answer the question, and does the text above support it? Reply with one word, Yes or No."
)
JUDGE_PAIR = (
    "Question about the text above: {{ question }}\n\nAnswer A: {{ answer_a }}\n\nAnswer B: {{ answer_b }}\n\n"
    "Which of the two answers is better, going by the text above? Reply with one letter, A or B."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """Jinja2 templates; each is put below a context and a blank line.

    Attributes:
        questions: asks for questions about a chunk; has ``count``.
        instruction: what the user asks in a pair; has ``lead_in`` and ``question``.
        judge_answer: asks whether an answer answers; has ``question`` and ``answer``. The first word of the reply counts.
        judge_pair: asks which of two answers is better; has ``question``, ``answer_a`` and ``answer_b``.
    """

    questions: str = QUESTIONS
    instruction: str = INSTRUCTION
    judge_answer: str = JUDGE_ANSWER
    judge_pair: str = JUDGE_PAIR

    @classmethod
    def load(cls, folder: Path) -> Prompts:
        """Read ``NAME.j2`` for each template that the folder has; the others are the built-in ones.

        Raises:
            UserError: the folder has none, one of another name, or one that is not a template of these variables.
        """
        files = sorted(folder.glob("*.j2"))
        names = [field.name for field in dataclasses.fields(cls)]
        if not files:
            raise UserError(
                f"--template-dir {folder}: no template in it; give any of {', '.join(f'{name}.j2' for name in names)}"
            )
        for file in files:
            if file.stem not in names:
                raise UserError(f"{file}: no such template; there are {', '.join(f'{name}.j2' for name in names)}")
        try:
            prompts = cls(**{file.stem: file.read_text(encoding="utf-8").strip() for file in files})
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--template-dir {folder}: cannot be read as UTF-8 text ({error})") from None
        prompts.ask_questions("text", 2)
        prompts.instruct("lead-in", "question?")
        prompts.ask_about_answer("text", "question?", "answer")
        prompts.ask_about_pair("text", "question?", "answer a", "answer b")
        return prompts

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the templates."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def ask_questions(self, chunk: str, count: int) -> str:
        """Build the message that asks for questions about a chunk."""
        return join_context(chunk, self._render("questions", count=count))

    def instruct(self, lead_in: str, question: str) -> str:
        """Build an instruction: what a pair asks, of the short context and of the long one."""
        return self._render("instruction", lead_in=lead_in, question=question)

    def ask_about_answer(self, chunk: str, question: str, answer: str) -> str:
        """Build the message that lets the model judge an answer."""
        return join_context(chunk, self._render("judge_answer", question=question, answer=answer))

    def ask_about_pair(self, chunk: str, question: str, answer_a: str, answer_b: str) -> str:
        """Build the message that lets the model compare two answers."""
        return join_context(chunk, self._render("judge_pair", question=question, answer_a=answer_a, answer_b=answer_b))

    def _render(self, name: str, **variables: Any) -> str:
        import jinja2
        from jinja2.sandbox import SandboxedEnvironment

        environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False)
        try:
            return environment.from_string(getattr(self, name)).render(**variables).strip()
        except (jinja2.TemplateError, TypeError) as error:
            known = ", ".join(variables)
            raise UserError(f"template {name}.j2: {error}; it may use {known}") from None


def join_context(context: str, instruction: str) -> str:
    """Build a user message: the context, a blank line, the instruction."""
    return join_message(context, instruction)
