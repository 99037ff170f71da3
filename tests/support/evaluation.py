"""Made-up files of the formats that evaluation reads, and a tokenizer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.support.hf_models import CHAT_TEMPLATE


def make_subword_tokenizer(folder: Path, text: str, vocabulary: int = 1000) -> None:
    """Train a byte-level BPE tokenizer on a text and save it, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def _facts(rng: random.Random, subject: str) -> str:
    places = ("north gate", "old mill", "long bridge", "third pier")
    return f"{subject} keeps a lamp at the {rng.choice(places)}. " + f"Of {subject} little else is told. " * 4


def write_squad(path: Path, *, articles: int = 40, paragraphs: int = 4) -> Path:
    """Write a file of SQuAD 2.0's form; each paragraph has one question with answers and one without."""
    rng = random.Random(1)
    data = []
    for article in range(articles):
        entries = []
        for number in range(paragraphs):
            subject = f"Keeper {article}-{number}"
            context = _facts(rng, subject)
            place = context.split(" at the ")[1].split(".")[0]
            answers = [{"text": place, "answer_start": 1}, {"text": f"the {place}", "answer_start": 1}]
            answerless = {"question": f"How old is {subject}?", "id": "x", "answers": [], "is_impossible": True}
            answered = {"question": f"Where does {subject} keep a lamp?", "id": "y", "answers": answers, "is_impossible": False}
            entries.append({"context": context, "qas": [answered, answerless]})
        data.append({"title": f"Article {article}", "paragraphs": entries})
    path.write_text(json.dumps({"version": "v2.0", "data": data}))
    return path


def write_hotpotqa(path: Path, *, questions: int = 16) -> Path:
    """Write a file of HotpotQA's form: two paragraphs with supporting facts and eight others for each question."""
    rng = random.Random(2)
    entries: list[dict[str, Any]] = []
    for number in range(questions):
        titles = [f"Harbour {number}-{place}" for place in range(10)]
        context = [[title, [_facts(rng, title), f" {title} is by the sea."]] for title in titles]
        rng.shuffle(context)
        supporting = [[titles[0], 0], [titles[1], 1]]
        entries.append(
            {"question": f"Is {titles[0]} like {titles[1]}?", "answer": "yes", "context": context, "supporting_facts": supporting}
        )
    path.write_text(json.dumps(entries))
    return path
