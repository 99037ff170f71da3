"""Write texts that the quickstart does not train on, each at several lengths, for perplexity.py.

The texts are topics of Python's language reference (`pydoc_data.topics`) that are none of the quickstart's, joined until they are
long enough. A text of 1,024 tokens is the start of the one of 12,288, so that lengths differ in nothing but length.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from pydoc_data.topics import topics

from megatron_longpo.utils.errors import UserError, run_command


def join_topics(known: set[str], number: int, characters: int) -> list[str]:
    """Join topics other than the known ones, longest first, to texts of at least so many characters.

    Raises:
        UserError: this Python's reference is too short.
    """
    names = sorted((name for name in topics if name not in known), key=lambda name: (-len(topics[name]), name))
    texts = [""] * number
    for name in names:
        shortest = min(range(number), key=lambda place: len(texts[place]))
        if len(texts[shortest]) < characters:
            texts[shortest] += topics[name].strip() + "\n\n"
    if min(map(len, texts)) < characters:
        raise UserError(f"pydoc_data.topics: not enough text for {number} texts of {characters} characters; ask for fewer")
    return texts


def main() -> None:
    """Write a file of texts for each length."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tokenizer-model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--documents", type=Path, required=True, help="what was trained on: the quickstart's documents.jsonl")
    parser.add_argument("--lengths", type=int, nargs="+", required=True, help="in tokens")
    parser.add_argument("--number", type=int, default=2, help="texts (default: 2)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    if not arguments.documents.is_file():
        raise UserError(f"{arguments.documents}: no such file; `make quickstart` writes it")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer_model)
    arguments.output.mkdir(parents=True, exist_ok=True)
    longest = max(arguments.lengths)
    lines = arguments.documents.read_text(encoding="utf-8").splitlines()
    known = {json.loads(line)["document_id"].removeprefix("python-") for line in lines}
    texts = join_topics(known, arguments.number, 5 * longest)
    found = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    if short := [len(ids) for ids in found if len(ids) < longest]:
        raise UserError(f"pydoc_data.topics: a text has {short[0]} tokens, {longest} are needed")
    for length in arguments.lengths:
        # One token less: lm-eval begins a text with the token that ends one.
        written = [json.dumps({"text": tokenizer.decode(ids[: length - 1])}) + "\n" for ids in found]
        (arguments.output / f"{length}.jsonl").write_text("".join(written), encoding="utf-8")
    print(f"{arguments.output}: {len(found)} texts of {', '.join(map(str, arguments.lengths))} tokens")


if __name__ == "__main__":
    run_command(main)
