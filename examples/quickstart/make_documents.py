"""Make eight documents of Python's own language reference, which every interpreter carries as `pydoc_data.topics`.

A document is the start of one topic, cut at a paragraph, of about two thousand tokens. The text is that of the interpreter at
hand, so another version of Python gives slightly different documents.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from pydoc_data.topics import topics

from megatron_longpo.utils.errors import UserError, run_command

TOPICS = ("execmodel", "naming", "import", "customization", "assignment", "try", "calls", "specialnames")
"""Topics of much prose and little grammar, long enough, and present in every Python from 3.11 on."""
MIN_CHARACTERS = 6000
MAX_CHARACTERS = 7800


def cut_at_paragraph(text: str) -> str:
    """Return the longest start of a text, in whole paragraphs, of at most `MAX_CHARACTERS` characters."""
    end = 0
    while (following := text.find("\n\n", end + 1)) != -1 and following <= MAX_CHARACTERS:
        end = following
    return text if len(text) <= MAX_CHARACTERS else text[:end]


def main() -> None:
    """Write the documents as JSON Lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON Lines file to write")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.output.with_name(arguments.output.name + ".partial")
    sizes = []
    with partial.open("w", encoding="utf-8") as file:
        for name in TOPICS:
            text = cut_at_paragraph(topics.get(name, "").strip())
            if len(text) < MIN_CHARACTERS:
                raise UserError(
                    f"pydoc_data.topics: {name!r} has {len(text)} characters in this Python, {MIN_CHARACTERS} are needed"
                )
            sizes.append(len(text))
            file.write(json.dumps({"document_id": f"python-{name}", "text": text}, ensure_ascii=False) + "\n")
    os.replace(partial, arguments.output)
    print(f"{arguments.output}: {len(sizes)} documents of {min(sizes)} to {max(sizes)} characters")


if __name__ == "__main__":
    run_command(main)
