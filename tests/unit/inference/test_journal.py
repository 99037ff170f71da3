import threading
from pathlib import Path

import pytest

from megatron_longpo.inference.journal import Journal
from megatron_longpo.utils.errors import UserError


def test_what_was_appended_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.append({"a": {"text": "\u00fc\n"}, "b": None})
        assert journal.read("a") == {"text": "\u00fc\n"}
    with Journal(path) as journal:
        assert "a" in journal
        assert "c" not in journal
        journal.append({"c": 3})
        assert [journal.read(key) for key in "abc"] == [{"text": "\u00fc\n"}, None, 3]
        journal.append({"a": "newer"})
        assert journal.read("a") == "newer"
    with Journal(path) as journal:
        assert journal.read("a") == "newer"


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_entries_that_were_appended_together_are_lost_together_and_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.append({"a": "first value"})
        journal.append({"b": "second value", "c": "third value"})
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path) as journal:
        assert ["a" in journal, "b" in journal, "c" in journal] == [True, False, False]
        journal.append({"b": "again"})
    with Journal(path) as journal:
        assert [journal.read("a"), journal.read("b")] == ["first value", "again"]


def test_refuses_a_second_writer_and_a_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path), pytest.raises(UserError, match="another process"):
        Journal(path)
    path.write_text('{"entries": [["a", 1]]}\nnonsense\n')
    with pytest.raises(UserError, match="journal:2: not a line of a journal"):
        Journal(path)


def test_a_reader_sees_whole_lines_beside_a_writer_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with pytest.raises(UserError, match="run this shard first"):
        Journal(path, read_only=True)
    with Journal(path) as writer:
        writer.append({"a": 1})
        with path.open("ab") as half:
            half.write(b'{"entries": [["b"')
        before = path.read_bytes()
        with Journal(path, read_only=True) as reader:
            assert reader.read("a") == 1
            assert "b" not in reader
    assert path.read_bytes() == before


def test_threads_do_not_mix_their_entries(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:

        def write(name: str) -> None:
            for number in range(25):
                journal.append({f"{name}{number}": name * number})
                assert journal.read(f"{name}{number}") == name * number

        threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Journal(tmp_path / "journal") as journal:
        assert all(journal.read(f"{name}{number}") == name * number for name in "abcd" for number in range(25))
