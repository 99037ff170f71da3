"""Ask a Hugging Face model the question of a record, about the record's whole document."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from megatron_longpo.utils.errors import run_command

MAX_NEW_TOKENS = 56


def main() -> None:
    """Answer greedily and keep question and answers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--pairs", type=Path, required=True, help="JSON Lines of records; the first turn of the first is asked")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    with arguments.pairs.open(encoding="utf-8") as lines:
        record = json.loads(next(lines))
    turn = record["turns"][0]

    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model)
    conversation = [{"role": "user", "content": f"{record['long_context']}\n\n{turn['instruction']}"}]
    prompt = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    content = {
        "document_id": record["document_id"],
        "prompt_tokens": prompt["input_ids"].shape[1],
        "instruction": turn["instruction"],
        "answer": answer,
        "before_from_chunk": turn["chosen"],
        "before_from_document": turn["rejected"],
    }
    partial = arguments.output.with_name(arguments.output.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, arguments.output)
    print(f"{arguments.output}: answered after {content['prompt_tokens']} tokens")


if __name__ == "__main__":
    run_command(main)
