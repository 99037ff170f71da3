from pathlib import Path

import pytest

from megatron_longpo.generation.journal import Journal
from megatron_longpo.utils.errors import UserError


def test_what_was_appended_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.append("a", {"text": "\u00fc\n"})
        journal.append("b", None)
        assert journal.read("a") == {"text": "\u00fc\n"}
    with Journal(path) as journal:
        assert "a" in journal
        assert "c" not in journal
        journal.append("c", 3)
        assert [journal.read(key) for key in "abc"] == [{"text": "\u00fc\n"}, None, 3]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_cut_short_is_dropped_and_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.append("a", "first value")
        journal.append("b", "second value")
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path) as journal:
        assert "a" in journal
        assert "b" not in journal
        journal.append("b", "again")
    with Journal(path) as journal:
        assert [journal.read("a"), journal.read("b")] == ["first value", "again"]


def test_refuses_a_second_process_and_a_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path), pytest.raises(UserError, match="another process"):
        Journal(path)
    path.write_text('{"key": "a", "value": 1}\nnonsense\n')
    with pytest.raises(UserError, match="journal:2: not a line of a journal"):
        Journal(path)
