"""Preprocessing against the tokenizer's own batch encoder: the whole command, and nothing but `encode_batch` on the same chats.

    python -m benchmarks.preprocess                                        a tokenizer trained here, with 16,000 tokens
    python -m benchmarks.preprocess --tokenizer-model models/Qwen3-8B      a tokenizer of yours, with its chat template

The encoder is given every distinct chat that the pairs make, rendered before: both long sides, and both short sides of each turn.
Both sides have the same number of cores, and their ids are compared. In further rows the encoder has each document, excerpt and
answer once.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import pydoc_data.topics
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contest import RESULTS, Scale, run_contest
from benchmarks.jobs import ROOT, Bench, Job, write_json
from benchmarks.report import Result, console_table
from megatron_longpo.utils.errors import run_command

TARGET = 0.8
"""Of the batch encoder's throughput, in tokens of all chats."""
TURNS, DOCUMENT_CHARACTERS, EXCERPT_CHARACTERS = 4, (200_000, 500_000), (10_000, 60_000)
BATCH = 64
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
)
PR_SET_CHILD_SUBREAPER = 36


def make_pairs(path: Path, num_bytes: int) -> None:
    """Write pairs whose documents are paragraphs of Python's own language reference in random order."""
    rng = random.Random(0)
    paragraphs = [part for topic in pydoc_data.topics.topics.values() for part in topic.split("\n\n") if part.strip()]

    def text(least: int, most: int) -> str:
        parts, length, wanted = [], 0, rng.randint(least, most)
        while length < wanted:
            parts.append(rng.choice(paragraphs))
            length += len(parts[-1]) + 2
        return "\n\n".join(parts)

    with path.open("w", encoding="utf-8") as stream:
        while stream.tell() < num_bytes:
            document, turns = text(*DOCUMENT_CHARACTERS), []
            for turn in range(TURNS):
                start = rng.randrange(len(document) - EXCERPT_CHARACTERS[1])
                excerpt = document[start : start + rng.randint(*EXCERPT_CHARACTERS)]
                question = f"{turn}. What does it say of this? {text(20, 100)}"
                answers = {"chosen": text(100, 1500), "rejected": text(100, 1500)}
                turns.append({"short_context": excerpt, "instruction": question, **answers})
            record = {"document_id": f"document-{stream.tell()}", "long_context": document, "turns": turns}
            stream.write(json.dumps(record) + "\n")


def make_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer trained on the same reference, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=16_000, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(pydoc_data.topics.topics.values(), trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[2], pad_token=special[0])
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)


def chats(record: dict[str, Any]) -> Iterator[list[dict[str, str]]]:
    """The chats that a record makes, as docs/data-format.md has them."""
    for side in ("chosen", "rejected"):
        long_chat: list[dict[str, str]] = []
        for turn in record["turns"]:
            question = turn["instruction"] if long_chat else f"{record['long_context']}\n\n{turn['instruction']}"
            long_chat += _exchange(question, turn[side])
            yield _exchange(f"{turn['short_context']}\n\n{turn['instruction']}", turn[side])
        yield long_chat


def _exchange(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer.strip()}]


def make_texts(pairs: Path, tokenizer: str, chats_path: Path, messages_path: Path) -> None:
    """Write every distinct chat of the pairs, rendered, and every distinct message."""
    from transformers import AutoTokenizer

    template = AutoTokenizer.from_pretrained(tokenizer)
    with pairs.open(encoding="utf-8") as stream:
        found = [chat for line in stream for chat in chats(json.loads(line))]
    write_json(chats_path, list(dict.fromkeys(template.apply_chat_template(chat, tokenize=False) for chat in found)))
    write_json(messages_path, list(dict.fromkeys(message["content"] for chat in found for message in chat)))


def _digest(ids: Iterator[Any]) -> dict[str, Any]:
    """Number of tokens in distinct sequences, and a hash of those in order of their hashes."""
    import numpy as np

    lengths = {}
    for sequence in ids:
        array = np.asarray(sequence, dtype=np.int32)
        lengths[hashlib.sha256(array.tobytes()).hexdigest()] = len(array)
    return {"tokens": sum(lengths.values()), "digest": hashlib.sha256("".join(sorted(lengths)).encode()).hexdigest()}


def raw(texts: str, tokenizer: str) -> dict[str, Any]:
    """Encode the texts with the library's batch encoder on all cores; only its calls are timed."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(Path(tokenizer) / "tokenizer.json"))
    content = json.loads(Path(texts).read_text(encoding="utf-8"))
    encoder.encode_batch(["Let the threads start."] * 16, add_special_tokens=False)
    spent, ids = {"wall": 0.0, "cpu": 0.0}, []
    for start in range(0, len(content), BATCH):
        cpu, wall = time.process_time(), time.perf_counter()
        encoded = encoder.encode_batch(content[start : start + BATCH], add_special_tokens=False)
        spent["wall"] += time.perf_counter() - wall
        spent["cpu"] += time.process_time() - cpu
        ids += [encoding.ids for encoding in encoded]
    return {**spent, **_digest(iter(ids))}


def ours(pairs: str, tokenizer: str, prefix: str, workers: int) -> dict[str, Any]:
    """Run the command, start-up and writing included, and count the CPU time of all its processes."""
    command = [sys.executable, str(ROOT / "tools" / "preprocess_preference_data.py"), "--input", pairs, "--output-prefix", prefix]
    command += ["--tokenizer-model", tokenizer, "--seq-length", "10000000", "--workers", str(workers), "--overwrite"]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # workers that outlive the command become children of this process
    started = time.perf_counter()
    subprocess.run(command, check=True)
    wall = time.perf_counter() - started
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, **_digest(_sides(prefix))}


def _sides(prefix: str) -> Iterator[Any]:
    from megatron_longpo.data.dataset import PreferenceDataset

    dataset = PreferenceDataset(prefix)
    for index in range(len(dataset)):
        pair = dataset[index]
        for side in (pair.chosen, pair.rejected, *pair.short_chosen, *pair.short_rejected):
            yield side.input_ids


def compare(bench: Bench, num_bytes: int, runs: int, cores: int, tokenizer: str | None = None) -> list[Result]:
    """Measure both in turns, each in processes of its own.

    Args:
        bench: where files and measurements lie.
        num_bytes: of the pairs.
        runs: of each.
        cores: of each.
        tokenizer: Hugging Face folder; None makes one.
    """
    folder = bench.folder / "preprocess"
    folder.mkdir(parents=True, exist_ok=True)
    pairs, name = folder / f"pairs-{num_bytes}.jsonl", Path(tokenizer).name if tokenizer else "bytelevel"
    chat_texts, messages = folder / f"chats-{num_bytes}-{name}.json", folder / f"messages-{num_bytes}-{name}.json"
    if tokenizer is None:
        tokenizer = str(folder / name)
        make_tokenizer(Path(tokenizer))
    if not pairs.exists():
        make_pairs(pairs, num_bytes)
    if not (chat_texts.exists() and messages.exists()):
        make_texts(pairs, tokenizer, chat_texts, messages)
    command = {"pairs": str(pairs), "prefix": str(folder / f"{name}-out"), "workers": cores}
    sides: dict[str, tuple[str, dict[str, Any]]] = {
        "ours": ("ours", command),
        "encode_batch": ("raw", {"texts": str(chat_texts)}),
        "encode_batch, each text once": ("raw", {"texts": str(messages)}),
    }
    samples: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for run in range(runs):
        for side, (function, arguments) in sides.items():
            job_name = f"preprocess-{name}-{num_bytes}-{side.replace(' ', '-')}-{run}"
            job = Job(
                name=job_name, function=f"benchmarks.preprocess:{function}",
                arguments={"tokenizer": tokenizer, **arguments}, environment={"RAYON_NUM_THREADS": str(cores)},
            )  # fmt: skip
            samples[side] += bench.run(job)
    assert len({sample["digest"] for side in ("ours", "encode_batch") for sample in samples[side]}) == 1, "the ids differ"
    return list(_rows(samples, f"{num_bytes >> 20} MB, {name}"))


def _rows(samples: dict[str, list[dict[str, Any]]], shape: str) -> Iterator[Result]:
    """Throughput in tokens of all chats, by which the command is measured against both ways to use the encoder."""
    tokens = samples["ours"][0]["tokens"]
    for against in list(samples)[1:]:
        for quantity, key in (("tokens a CPU-second", "cpu"), ("tokens a second", "wall")):
            ours, other = (statistics.median(tokens / sample[key] for sample in samples[side]) for side in ("ours", against))
            yield Result(
                contest="preprocessing", against=against, shape=shape, quantity=quantity, unit="tokens/s", ours=ours, other=other,
                ratio=ours / other, target=TARGET, at_most=False, details=samples,
            )  # fmt: skip


def contest(bench: Bench, scale: Scale) -> list[Result]:
    """With the tokenizer that is trained here."""
    num_bytes, runs = scale.preprocess
    return compare(bench, num_bytes, runs, scale.threads)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tokenizer-model", metavar="PATH", help="Hugging Face folder (default: one that is trained here)")
    parser.add_argument("--megabytes", type=int, default=32, help="of pairs (default: 32)")
    parser.add_argument("--runs", type=int, default=3, help="of each side, in turns (default: 3)")
    parser.add_argument("--force", action="store_true", help="measure again what is there already")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of files and results (build/bench)")
    given = parser.parse_args()

    def asked(bench: Bench, scale: Scale) -> list[Result]:
        return compare(bench, given.megabytes << 20, given.runs, len(os.sched_getaffinity(0)), given.tokenizer_model)

    print(console_table(run_contest("preprocess", asked, Bench(given.output, force=given.force), Scale())))


if __name__ == "__main__":
    run_command(main)
