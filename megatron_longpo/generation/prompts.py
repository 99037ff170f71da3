"""The words that are put to the model. Wording of our own; the order (text, blank line, instruction) is LongPO's."""

from __future__ import annotations

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

QUESTION_INSTRUCTION = (
    "Write {count} questions in English about the text above. Each question should join several parts of the text and test how "
    "well a reader has understood it. Write only the questions, one on each line, numbered from 1 to {count}."
)
"""One paragraph: small models take a list of rules for a text to be continued."""


def join_context(context: str, instruction: str) -> str:
    """Build a user message: the context, a blank line, the instruction."""
    return f"{context}\n\n{instruction}"


def question_message(chunk: str, count: int) -> str:
    """Build the user message that asks for questions about a chunk."""
    return join_context(chunk, QUESTION_INSTRUCTION.format(count=count))


def instruction(lead_in: str, question: str) -> str:
    """Build an instruction: the lead-in phrase and the question."""
    return f"{lead_in} {question}"
