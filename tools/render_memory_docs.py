r"""Bring docs/memory.md up to date: each block of ``$ python tools/estimate_memory.py`` gets that command's output.

python tools/render_memory_docs.py           # rewrite the page
python tools/render_memory_docs.py --check   # fail when it is not what would be written
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from megatron_longpo.utils.errors import UserError, run_command

ESTIMATE = Path(__file__).parent / "estimate_memory.py"
PAGE = Path(__file__).parents[1] / "docs" / "memory.md"
BLOCK = re.compile(r"(?<=```console\n)\$ python tools/estimate_memory\.py (.+)\n(?:.*\n)*?(?=```)")


def render(text: str) -> str:
    """The page's text with each command's output as it is now."""

    def run(block: re.Match[str]) -> str:
        command = [sys.executable, str(ESTIMATE), *shlex.split(block[1])]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return f"$ python tools/estimate_memory.py {block[1]}\n{said}"

    return BLOCK.sub(run, text)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page is not what would be written")
    arguments = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    rendered = render(text)
    if arguments.check and rendered != text:
        raise UserError(f"{PAGE}: not what the estimates are now; run python tools/render_memory_docs.py")
    if not arguments.check:
        temporary = PAGE.with_name(PAGE.name + ".tmp")
        temporary.write_text(rendered, encoding="utf-8")
        os.replace(temporary, PAGE)


if __name__ == "__main__":
    run_command(main)
