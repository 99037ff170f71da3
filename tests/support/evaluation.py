"""Made-up files of the formats that evaluation reads, a tokenizer, and a model that reads perfectly."""

from __future__ import annotations

import collections
import dataclasses
import json
import random
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_longpo.inference.engine import Completion
from megatron_longpo.inference.sampling import Sampling
from megatron_longpo.utils.errors import UserError
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


def read_out(message: str) -> str:
    """Answer a generated question by reading all of its text: what a model with perfect long context says."""
    text, _, question = message.rpartition("\n\n")
    if "access" in question:
        statements = re.findall(r"The access \w+ of (\S+) is (\S+)\.", text)
        return ", ".join(value for name, value in statements if re.search(rf"(?<![\w-]){name}(?![\w-])", question))
    if "variables hold" in question:
        held, value = [], re.search(r"the value (\d+)", question)[1]  # type: ignore[index]
        for name, source in re.findall(r"SET ([A-Z]+) TO (\w+)\.", text.rpartition("The text:")[2]):
            if source == value or source in held:
                held.append(name)
        return ", ".join(held)
    if "words come most often in the list" in question:
        words = re.findall(r"\d+\. (\S+)", text.rpartition("The list:")[2])
        return ", ".join(word for word, _ in collections.Counter(words).most_common(10))
    if "coded words" in question:
        words = [word for word in text.rpartition("\n\n")[2].split() if word != "..."]
        return ", ".join(word for word, _ in collections.Counter(words).most_common(3))
    if found := re.search(r"Where does (Keeper \S+) keep", question):
        return re.search(rf"{found[1]} keeps a lamp at the ([^.]+)\.", text)[1]  # type: ignore[index]
    return "yes"


@dataclasses.dataclass
class Reader:
    """An engine that answers by a function, and may give up or fail.

    Attributes:
        reply: the answer to a message.
        asked: messages that were answered.
        gives_up_after: answers after which it raises; None: never.
        fails: parts of messages that get no answer.
        name: what it is known by.
        calls: how often it was asked something.
    """

    reply: Callable[[str], str] = read_out
    asked: list[str] = dataclasses.field(default_factory=list)
    gives_up_after: int | None = None
    fails: tuple[str, ...] = ()
    name: str = "reader"
    group_size: int = 3
    concurrency: int = 1
    calls: int = 0

    def complete(
        self, messages: Sequence[str], sampling: Sampling, seeds: Sequence[int], done: Collection[int] = ()
    ) -> Iterator[dict[int, Completion]]:
        self.calls += 1
        for place in (place for place in range(len(messages)) if place not in done):
            if self.gives_up_after is not None and len(self.asked) >= self.gives_up_after:
                raise UserError("the server is out")
            if any(part in messages[place] for part in self.fails):
                yield {place: Completion("", "failed", 0, "refused")}
                continue
            self.asked.append(messages[place])
            yield {place: Completion(self.reply(messages[place]), "stop", 5)}

    def score(self, message: str, answer: str) -> float | None:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        return {"engine": self.name}


def write_books(folder: Path, *, books: int = 2, words: int = 600) -> Path:
    """Write InfiniteBench's three files, two questions a book in mixed order; each book tells a code at its start and its end."""
    rng = random.Random(5)
    folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for book in range(books):
        middle = " ".join(rng.choices(["amber", "river", "stone", "lamp", "mill", "north"], k=words))
        texts.append(f"Book {book} begins with code S{book}17. {middle} Book {book} ends with code E{book}42.")
    options = ["The old mill", "The pier", "A lamp", "Nobody"]
    files: dict[str, list[dict[str, Any]]] = {name: [] for name in ("longbook_sum_eng", "longbook_qa_eng", "longbook_choice_eng")}
    for number in range(2 * books):
        book = number % books
        common = {"id": number, "context": texts[book]}
        which = "begin" if number < books else "end"
        code = f"S{book}17" if number < books else f"E{book}42"
        if number < books:
            files["longbook_sum_eng"].append({**common, "input": "", "answer": [f"Book {book} has codes.\nIt is about rivers."]})
        files["longbook_qa_eng"].append(
            {**common, "input": f"With which code does book {book} {which}?", "answer": [code, "no code"]}
        )
        right = options[number % 4]
        files["longbook_choice_eng"].append(
            {**common, "input": f"What is in book {book}, {number}?", "answer": [right], "options": options}
        )
    for name, records in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def write_short_data(folder: Path, *, parquet: bool = False, asked: int = 4) -> Path:
    """Write data of the short tasks' columns, as clones of their repositories (Parquet) or as one file a split (JSON Lines)."""
    rng = random.Random(9)
    words = ("amber", "river", "stone", "lamp", "mill", "north", "harbour", "bridge")

    def sentence(length: int = 6) -> str:
        return " ".join(rng.choices(words, k=length)).capitalize()

    def four() -> list[str]:
        """Choices of very different lengths, so that their log-probs and those by character rank them differently."""
        return [sentence(length) for length in rng.sample((1, 3, 6, 10), 4)]

    def mmlu(number: int) -> dict[str, Any]:
        return {
            "question": f"{sentence()}?",
            "subject": "s",
            "choices": four(),
            "answer": rng.randrange(4),
        }

    def arc(number: int) -> dict[str, Any]:
        choices = {"text": four(), "label": list("ABCD")}
        return {"id": str(number), "question": f"{sentence()}?", "choices": choices, "answerKey": rng.choice("ABCD")}

    def hellaswag(number: int) -> dict[str, Any]:
        endings = four()
        start, end = sentence(), sentence(2)
        return {
            "ind": number, "activity_label": "Sailing", "ctx_a": start, "ctx_b": end, "ctx": f"{start} {end}", "endings": endings,
            "source_id": "x", "split": "val", "split_type": "indomain", "label": str(rng.randrange(4)),
        }  # fmt: skip

    def winogrande(number: int) -> dict[str, Any]:
        first, second = rng.sample(words, 2)
        text = f"The {first} is by the {second}, and the _ is old."
        return {"sentence": text, "option1": first, "option2": second, "answer": rng.choice("12")}

    benchmarks: list[tuple[str, str, Callable[[int], dict[str, Any]], dict[str, int]]] = [
        ("mmlu/anatomy", "mmlu/anatomy", mmlu, {"dev": 5, "test": asked}),
        ("mmlu/virology", "mmlu/virology", mmlu, {"dev": 5, "test": asked - 2}),
        ("arc_challenge", "ai2_arc/ARC-Challenge", arc, {"train": 30, "test": asked}),
        ("hellaswag", "hellaswag/data", hellaswag, {"train": 12, "validation": asked}),
        ("winogrande", "winogrande/winogrande_xl", winogrande, {"train": 8, "validation": asked}),
    ]
    for plain, cloned, make, splits in benchmarks:
        place = folder / (cloned if parquet else plain)
        place.mkdir(parents=True)
        for split, count in splits.items():
            rows = [make(number) for number in range(count)]
            if parquet:
                import pyarrow
                import pyarrow.parquet

                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), place / f"{split}-00000-of-00001.parquet")
            else:
                (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
