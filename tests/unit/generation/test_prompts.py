from pathlib import Path

import pytest

from megatron_longpo.generation.prompts import Prompts
from megatron_longpo.utils.errors import UserError


def test_context_and_what_is_asked_are_joined_by_one_blank_line() -> None:
    prompts = Prompts()
    for message in (
        prompts.ask_questions("CONTEXT", 3),
        prompts.ask_about_answer("CONTEXT", "Why?", "So."),
        prompts.ask_about_pair("CONTEXT", "Why?", "So.", "Or so."),
    ):
        assert message.startswith("CONTEXT\n\n")
        assert message[len("CONTEXT\n\n")] != "\n"
    assert "3 questions" in prompts.ask_questions("CONTEXT", 3)
    assert prompts.instruct("Say:", "Why?") == "Say: Why?"


def test_templates_of_the_users_replace_ours_and_change_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "questions.j2").write_text("Schreibe {{ count }} Fragen.\n")
    prompts = Prompts.load(tmp_path)
    assert prompts.ask_questions("Text", 4) == "Text\n\nSchreibe 4 Fragen."
    assert prompts.judge_pair == Prompts().judge_pair
    assert prompts.fingerprint != Prompts().fingerprint


def test_text_is_never_read_as_a_template() -> None:
    assert Prompts().ask_about_answer("{{ 1 }}", "{{ question }} {% x %}?", "{{ 7 * 7 }}").count("{{") == 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("question.j2", "x", "no such template; there are questions.j2"),
        ("questions.j2", "{{ number }}", "template questions.j2: 'number' is undefined; it may use count"),
        ("questions.j2", "{{ count", "template questions.j2"),
        ("judge_pair.j2", "{{ ''.__class__.__mro__ }}", "template judge_pair.j2"),
    ],
)
def test_a_template_that_cannot_work_is_refused_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        Prompts.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no template in it; give any of questions.j2"):
        Prompts.load(tmp_path)
