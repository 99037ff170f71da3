"""The error that means: the user can mend this. Commands print it as one line and exit with 1."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable

NOTICES = (
    "megatron.core.models.gpt.gpt_model",  # packages that are absent
    "megatron.core.distributed.distributed_data_parallel",  # 0.19: says that it takes its own default layout
    "megatron.core.dist_checkpointing.strategies.common",  # 0.19: deprecates what its own `load` calls
    "megatron.core.dist_checkpointing.strategies.torch",  # 0.19: the same of `save`
    "torch.utils.cpp_extension",  # no CUDA runtime, at import
)
"""Loggers that warn on every run about nothing that a user of this project could change."""


class UserError(ValueError):
    """Bad input. The message names the file, the record and the field where there is one, and the cure."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit: 0 on success, 1 with one line on stderr for a `UserError`, 130 on Ctrl-C."""
    quiet_libraries()
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def quiet_libraries() -> None:
    """Keep libraries' notices off the console: packages that are optional here, and their own deprecated calls."""
    for module in (r"megatron\.", r"torch\.distributed\."):
        for category in (UserWarning, FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=module)
    for name in NOTICES:
        logging.getLogger(name).setLevel(logging.ERROR)
