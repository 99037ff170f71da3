"""``python -m megatron_longpo.evolution.supervise FOLDER PARENT COMMAND...``: see `processes`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType

from megatron_longpo.evolution.processes import MARK, StopRequest, adopt_orphans, die_with_parent, end_children, end_processes
from megatron_longpo.utils.errors import UserError, run_command


class _Ended(Exception):
    """The run is over, or wants this command to be."""


def main() -> int:
    """Run the command, pass its code on, and leave none of its processes behind."""
    folder, parent, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]

    def end(number: int, frame: FrameType | None) -> None:
        raise _Ended

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    signal.signal(signal.SIGINT, lambda number, frame: None)  # the command decides what it does on Ctrl-C
    try:
        with StopRequest() as request:
            die_with_parent(signal.SIGTERM)
            adopt_orphans()
            if os.getppid() != parent:  # it was too late to ask
                return 1
            return _run(command, folder, request)
    except _Ended:
        return 128 + signal.SIGTERM
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        end_children(folder)
        end_processes(folder)


def _run(command: list[str], folder: str, request: StopRequest) -> int:
    try:
        process = subprocess.Popen(command, env={**os.environ, MARK: folder}, preexec_fn=lambda: die_with_parent(signal.SIGKILL))
    except OSError as error:
        raise UserError(f"{command[0]}: cannot be started ({error.strerror})") from None
    request.tell(lambda: process.send_signal(signal.SIGUSR1))
    code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    run_command(main)
