"""From imports to the first batch of a large dataset: seconds, and memory at a hundredth of the pairs."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.contest import Scale, contest_main
from benchmarks.jobs import Bench, Job, keep_freed_memory_out
from benchmarks.measure import memory_of, timed
from benchmarks.report import Result
from megatron_longpo.config.schema import DataConfig, ParallelConfig, RunConfig, TrainingConfig
from megatron_longpo.data.batch import RankBatch
from megatron_longpo.data.indexed import INDEX_HEADER, INDEX_MAGIC, INT32_CODE
from megatron_longpo.data.layout import pack_pair, shared_prefix_length
from megatron_longpo.data.loader import rank_batches
from megatron_longpo.data.manifest import (
    SUFFIXES,
    Manifest,
    TokenizerRecord,
    data_hash,
    manifest_path,
    record_file,
    write_manifest,
)
from megatron_longpo.data.pair import PreferencePair, Side
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.models.flops import step_flops
from megatron_longpo.parallel import state as parallel_state
from megatron_longpo.reference.cache import CachedReference, ReferenceCache, ReferenceFingerprint, cache_path
from megatron_longpo.training.batches import shares
from megatron_longpo.training.data import open_data, packing_options
from megatron_longpo.utils.errors import run_command

SECONDS_TARGET, MEMORY_TARGET = 2.0, 1.05
VOCABULARY = 1000
DIGITS = 10
LONG_SIDES = (24, 40, 56, 72)
"""Tokens of the chosen side: pairs take turns. Start-up does not depend on them, only the size on disk."""
FINGERPRINT = ReferenceFingerprint("made up", "made up", "made up", "made up", "made up", "short", "float32")
ARCHITECTURE = ModelArchitecture(
    family="llama", num_layers=4, hidden_size=512, ffn_hidden_size=1408, num_attention_heads=8, num_query_groups=4,
    kv_channels=64, vocab_size=VOCABULARY, norm_epsilon=1e-5, rotary_base=10_000.0, max_position_embeddings=4096,
)  # fmt: skip


def make_dataset(prefix: str, count: int) -> None:
    """Write a dataset of ``count`` made-up pairs with its reference cache, in the product's formats; nothing if it is there.

    Args:
        prefix: path without suffix.
        count: a multiple of the number of `LONG_SIDES`.
    """
    if manifest_path(prefix).exists():
        return
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pairs = [_pair(rng, length) for length in LONG_SIDES]
    documents = [pack_pair(pair) for pair in pairs]
    rounds = count // len(pairs)
    _write_tokens(Path(f"{prefix}.bin"), documents, rounds)
    _write_index(Path(f"{prefix}.idx"), [len(sequence) for document in documents for sequence in document], rounds, count)
    offsets = np.arange(count + 1, dtype=np.int64)
    answers = np.full((count, 2), 4, dtype=np.int64)
    ReferenceCache(FINGERPRINT, offsets, -rng.random((count, 2)), answers).save(cache_path(prefix, FINGERPRINT.context))
    write_manifest(prefix, _manifest(prefix, pairs, count))


def _pair(rng: np.random.Generator, length: int) -> PreferencePair:
    prompt, answers = rng.integers(0, VOCABULARY, length - 4), rng.integers(0, VOCABULARY, (2, 4))
    answers[1, 0] = (answers[0, 0] + 1) % VOCABULARY

    def side(start: np.ndarray, answer: np.ndarray) -> Side:
        return Side(np.concatenate([start, answer]).astype(np.int32), ((len(start), len(start) + 4),))

    short = [(side(prompt[-8:], answer),) for answer in answers]
    return PreferencePair("0" * DIGITS, side(prompt, answers[0]), side(prompt, answers[1]), ((0, length),), *short)


def _write_tokens(path: Path, documents: list[list[np.ndarray]], rounds: int) -> None:
    """The documents again and again, each time with the next numbers as their ids."""
    template = np.concatenate([sequence for document in documents for sequence in document])
    headers = np.cumsum([0, *(sum(map(len, document)) for document in documents)])[:-1] + len(documents[0][0]) - DIGITS
    with path.open("wb") as file:
        for start in range(0, rounds, 1 << 14):
            block = np.tile(template, (min(1 << 14, rounds - start), 1))
            for which, column in enumerate(headers):
                numbers = (start + np.arange(len(block))) * len(documents) + which
                for digit in range(DIGITS):
                    block[:, column + digit] = ord("0") + numbers // 10 ** (DIGITS - 1 - digit) % 10
            block.tofile(file)


def _write_index(path: Path, lengths: list[int], rounds: int, count: int) -> None:
    all_lengths = np.tile(np.array(lengths, dtype=np.int32), rounds)
    pointers = np.concatenate([[0], np.cumsum(all_lengths[:-1], dtype=np.int64) * 4])
    with path.open("wb") as file:
        file.write(INDEX_HEADER.pack(INDEX_MAGIC, 1, INT32_CODE, len(all_lengths), count + 1))
        all_lengths.tofile(file)
        pointers.tofile(file)
        (np.arange(count + 1, dtype=np.int64) * (len(all_lengths) // count)).tofile(file)


def _manifest(prefix: str, pairs: list[PreferencePair], count: int) -> Manifest:
    shared = [shared_prefix_length(pair.chosen.input_ids, pair.rejected.input_ids) for pair in pairs]

    def summary(lengths: Sequence[int]) -> dict[str, float]:
        return {"count": count, "minimum": min(lengths), "mean": sum(lengths) / len(lengths), "maximum": max(lengths)}

    sides = {"chosen": LONG_SIDES, "rejected": LONG_SIDES, "shared_prefix": shared}
    short = {"short_chosen": (12,), "short_rejected": (12,), "answer": (4,)}
    files = {suffix: record_file(Path(f"{prefix}.{suffix}")) for suffix in SUFFIXES}
    return Manifest(
        num_records=count, num_pairs=count, num_turns=count, max_turns=1, max_token_id=VOCABULARY - 1, seq_length=max(LONG_SIDES),
        short_seq_length=None, drops={}, lengths={name: summary(lengths) for name, lengths in {**sides, **short}.items()},
        tokenizer=TokenizerRecord(), job={}, files=files, data_hash=data_hash(files),
    )  # fmt: skip


def first_batch(prefix: str) -> list[RankBatch]:
    """What a run does before its first forward pass, but for the model: data, groups, reference cache, plan, packing."""
    config = RunConfig(
        data=DataConfig(data_path=(prefix,)), training=TrainingConfig(num_epochs=1, global_batch_size=8, micro_batch_tokens=4096)
    )
    data = open_data(config.data, config.training.seed, ARCHITECTURE)
    state = parallel_state.initialize(ParallelConfig())
    try:
        reference = CachedReference([ReferenceCache.load(prefix, FINGERPRINT)])
        share = next(shares(config, data, step_flops(ARCHITECTURE), state, 0, 8))
        return list(rank_batches(share.micro_batches, data.datasets, reference, packing_options(config, state), state))
    finally:
        parallel_state.destroy()


def measure(prefix: str) -> dict[str, float]:
    """Seconds and memory of the first batch in this process, where all is imported.

    Returns:
        ``seconds`` (wall) and ``cpu``; bytes: ``standing`` after imports and ``peak`` above that, both resident, mapped pages of
        the files included; ``allocated``: peak of what Python and NumPy allocate, in a second call.
    """
    import megatron.core.datasets.indexed_dataset  # noqa: F401  what reading imports late

    (share, spent), memory = memory_of(lambda: timed(lambda: first_batch(prefix)))
    tracemalloc.start()
    again = first_batch(prefix)
    _, allocated = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [batch.whole.sample_ids.tolist() for batch in share] == [batch.whole.sample_ids.tolist() for batch in again]
    return {"seconds": spent["wall"], "cpu": spent["cpu"], **memory, "allocated": allocated}


def contest(bench: Bench, scale: Scale) -> list[Result]:
    """The whole number of pairs, and a hundredth of them."""
    found = {}
    for count in (scale.startup, scale.startup // 100):
        prefix = str(bench.folder / "startup" / f"pairs-{count}")
        make_dataset(prefix, count)
        job = Job(
            name=f"startup-{count}", function="benchmarks.startup:measure", arguments={"prefix": prefix},
            environment=keep_freed_memory_out(),
        )  # fmt: skip
        found[count] = bench.run(job)[0]
    many, few = found.values()
    shape = f"{scale.startup:,} pairs"
    return [
        Result(
            contest="start-up", against="two seconds", shape=shape, quantity="first batch after imports", unit="s",
            ours=many["seconds"], other=SECONDS_TARGET, ratio=many["seconds"] / SECONDS_TARGET, target=1.0, details=many,
        ),
        Result(
            contest="start-up", against="a hundredth of the pairs", shape=shape, quantity="peak of allocated memory", unit="MB",
            ours=many["allocated"] / 1e6, other=few["allocated"] / 1e6, ratio=many["allocated"] / few["allocated"],
            target=MEMORY_TARGET, details=few,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    run_command(lambda: contest_main("startup", contest, __doc__))
