"""Progress in a log and on a terminal."""

import io

import pytest

from megatron_longpo.utils import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_a_log_gets_whole_lines_now_and_then_and_none_of_what_is_soon_over(monkeypatch, seconds):
    monkeypatch.setattr(progress, "LINE_SECONDS", seconds)
    log = io.StringIO()
    for _ in progress.progress_bar(range(3), desc="work", unit="step", stream=log):
        pass
    lines = log.getvalue().splitlines()
    assert all(line.startswith("work: ") and "\r" not in line for line in lines)
    assert ("3/3" in lines[-1] and len(lines) >= 3) if seconds == 0 else not lines


def test_a_terminal_gets_one_line_that_is_drawn_again():
    terminal = Terminal()
    for _ in progress.progress_bar(range(3), desc="work", stream=terminal, mininterval=0):
        pass
    assert terminal.getvalue().count("\n") == 1
    assert terminal.getvalue().count("\r") > 1


def test_another_process_says_nothing():
    terminal = Terminal()
    assert list(progress.progress_bar(range(3), stream=terminal, shown=False)) == [0, 1, 2]
    assert terminal.getvalue() == ""
