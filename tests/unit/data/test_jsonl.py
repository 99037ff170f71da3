"""Files are read in ranges of whole lines, with bounded memory, in processes that end with their parent."""

import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_longpo.data import jsonl
from megatron_longpo.data.preprocess import WORKER_IMPORTS  # all pools of a process share what the first one imports
from megatron_longpo.data.processes import Processes
from megatron_longpo.utils.errors import UserError


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.text("ab\n", max_size=60), size=st.integers(1, 20), block=st.integers(2, 8))
def test_ranges_hold_every_line_once_and_whole(tmp_path, monkeypatch, content, size, block):
    monkeypatch.setattr(jsonl, "BLOCK", block)
    path = tmp_path / "lines"
    path.write_bytes(content.encode())
    ranges = list(jsonl.cut(str(path), size))
    assert [start for start, _ in ranges] == [0, *(end for _, end in ranges)][: len(ranges)]
    assert not content or ranges[-1][1] == len(content)
    assert all(end - start >= size for start, end in ranges[:-1])
    lines = [line for start, end in ranges for line in jsonl.lines(str(path), start, end)]
    assert lines == content.encode().splitlines(keepends=True)
    for start, end in ranges[:-1]:
        assert content[end - 1] == "\n"
        assert "\n" not in content[start + size - 1 : end - 1], "a range ends with the line that passes the size"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.text("ab\n", max_size=60), longest=st.integers(1, 6), block=st.integers(2, 4))
def test_a_line_that_is_too_long_is_left_out_and_counted(tmp_path, monkeypatch, content, longest, block):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", longest)
    monkeypatch.setattr(jsonl, "BLOCK", block)
    path = tmp_path / "lines"
    path.write_bytes(content.encode())
    expected = [line if len(line) <= longest else None for line in content.encode().splitlines(keepends=True)]
    assert list(jsonl.lines(str(path), 0, len(content))) == expected


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(UserError, match=f"--input .*{name}.*; give JSON Lines files"):
        list(jsonl.cut(str(tmp_path / name), 10))


@pytest.mark.parametrize("magic", [b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd"])
def test_a_compressed_file_is_called_so(tmp_path, magic):
    (tmp_path / "a").write_bytes(magic + b"...")
    with pytest.raises(UserError, match=r"--input .*/a: is compressed; unpack it"):
        list(jsonl.cut(str(tmp_path / "a"), 10))


def slow_square(number):
    time.sleep(0.05 if number % 3 == 0 else 0)
    return number * number


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_order_or_as_they_are_finished(count):
    with Processes(count, WORKER_IMPORTS) as processes:
        assert list(processes.in_order(slow_square, ((n,) for n in range(20)))) == [n * n for n in range(20)]
        assert sorted(processes.as_finished(slow_square, ((n,) for n in range(20)))) == [n * n for n in range(20)]


@pytest.mark.parametrize("method", ["in_order", "as_finished"])
def test_few_tasks_are_handed_out_at_a_time(method):
    handed_out = []

    def tasks():
        for number in range(100):
            handed_out.append(number)
            yield (number,)

    with Processes(2, WORKER_IMPORTS) as processes:
        results = getattr(processes, method)(slow_square, tasks())
        next(results)
        assert len(handed_out) <= 16  # eight, and one for each of these that has finished by then
        results.close()


def test_a_worker_that_dies_is_a_user_error():
    message = r"a worker process died .* run the command again"
    with Processes(2, WORKER_IMPORTS) as processes, pytest.raises(UserError, match=message):
        list(processes.in_order(os._exit, [(3,)]))


PARENT = """
import os, time
from megatron_longpo.data.processes import Processes
if __name__ == "__main__":
    with Processes(2) as processes:
        print(*set(processes.in_order(os.getpid, [()] * 20)), flush=True)
        list(processes.in_order(time.sleep, [(600,), (600,)]))
"""


def test_workers_end_when_the_parent_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert workers
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(running(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
