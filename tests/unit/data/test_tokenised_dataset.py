"""The dataset on disk: layout, manifest, and what happens to a dataset that is not whole."""

import dataclasses
import json
import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.data import indexed
from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.indexed import write_indexed
from megatron_longpo.data.inspection import find_problems
from megatron_longpo.data.layout import check_pair, pack_pair, shared_prefix_length, unpack_pair
from megatron_longpo.data.manifest import data_hash, record_file, write_manifest
from megatron_longpo.data.pair import PreferencePair, Side
from megatron_longpo.data.record import parse_record
from megatron_longpo.data.tokenize_pair import LengthLimits, RecordTokenizer
from megatron_longpo.data.tokenizer import TokenizerSpec
from megatron_longpo.utils.errors import UserError
from tests.support.make_data import make_dataset

INSPECT = Path(__file__).parents[3] / "tools" / "inspect_preference_data.py"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset") / "pairs", num_documents=4, num_turns=3)


@pytest.fixture
def prefix(original, tmp_path):
    """A copy of the dataset that the test may spoil."""
    for suffix in ("bin", "idx", "json"):
        (tmp_path / f"pairs.{suffix}").write_bytes(Path(f"{original.prefix}.{suffix}").read_bytes())
    return str(tmp_path / "pairs")


@pytest.fixture(scope="module")
def tokenizer(original):
    return TokenizerSpec(f"{original.prefix}-tokenizer").load()


def equal(first, second):
    """Whether two pairs are the same, arrays included."""
    if dataclasses.is_dataclass(first):
        return all(equal(getattr(first, field.name), getattr(second, field.name)) for field in dataclasses.fields(first))
    if isinstance(first, tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return np.array_equal(first, second) if isinstance(first, np.ndarray) else first == second


@st.composite
def sides(draw, num_answers, start=()):
    ids = [*start, *draw(st.lists(st.integers(0, 3), min_size=2 * num_answers + 1, max_size=30))]
    bounds = sorted(draw(st.sets(st.integers(1, len(ids)), min_size=2 * num_answers, max_size=2 * num_answers)))
    return Side(np.array(ids, np.int32), tuple(zip(bounds[0::2], bounds[1::2], strict=True)))


@st.composite
def pairs(draw):
    turns = draw(st.integers(1, 3))
    start = draw(st.lists(st.integers(0, 3), max_size=10))
    short = [tuple(draw(sides(1)) for _ in range(turns)) for _ in range(2)]
    content = draw(sides(draw(st.integers(0, 4))))
    name = draw(st.text("aé文", min_size=1))
    return PreferencePair(name, draw(sides(turns, start)), draw(sides(turns, start)), content.answer_spans, *short)


@settings(deadline=None, max_examples=30)
@given(pairs())
def test_a_pair_survives_its_sequences(pair):
    sequences = pack_pair(pair)
    assert equal(unpack_pair(sequences), pair)
    assert all(sequence.dtype == np.int32 and len(sequence) for sequence in sequences)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.lists(st.integers(0, 1), min_size=1, max_size=12))
def test_the_shared_prefix_is_the_longest_that_leaves_each_side_a_token(first, second):
    length = shared_prefix_length(np.array(first), np.array(second))
    assert first[:length] == second[:length]
    assert length < min(len(first), len(second))
    assert length == min(len(first), len(second)) - 1 or first[length] != second[length]


def test_the_layout_on_disk_is_what_the_format_document_says(tmp_path):
    pair = PreferencePair(
        "d",
        Side(np.array([5, 6, 7, 8, 9], np.int32), ((2, 4),)),
        Side(np.array([5, 6, 1, 2], np.int32), ((2, 3),)),
        ((0, 1), (2, 4)),
        (Side(np.array([5, 8], np.int32), ((1, 2),)),),
        (Side(np.array([5, 6, 1], np.int32), ((1, 3),)),),
    )
    sequences = [sequence.tolist() for sequence in pack_pair(pair)]
    assert sequences == [[2, 1, 2, 2, 2, 4, 2, 3, 0, 1, 2, 4, 1, 2, 1, 3, 100], [5, 6, 7, 8, 9], [1, 2], [5, 8], [5, 6, 1]]


def test_megatrons_own_reader_reads_it(original):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    stock = IndexedDataset(original.prefix)
    assert len(stock.document_indices) == len(original) + 1
    for index in range(len(original)):
        first, last = stock.document_indices[index : index + 2]
        sequences = [stock[i] for i in range(first, last)]
        assert len(sequences) == 3 + 2 * 3
        assert equal(unpack_pair(sequences), original[index])


def test_the_files_are_byte_for_byte_those_of_megatrons_own_builder(tmp_path, monkeypatch):
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    monkeypatch.setattr(indexed, "INDEX_BLOCK", 4)
    rng = np.random.default_rng(0)
    pairs = [[rng.integers(0, 9, rng.integers(1, 6)).astype(np.int32) for _ in range(size)] for size in (5, 7, 1, 9)]
    files = write_indexed(str(tmp_path / "ours"), iter(pairs))
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.int32)
    for sequences in pairs:
        for sequence in sequences:
            builder.add_item(torch.from_numpy(sequence))
        builder.end_document()
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()
        assert files[suffix] == record_file(tmp_path / f"ours.{suffix}")


def test_what_is_read_is_what_tokenising_gives(original, tokenizer):
    lines = Path(f"{original.prefix}.jsonl").read_text(encoding="utf-8").splitlines()
    for index, line in enumerate(lines):
        assert equal(RecordTokenizer(tokenizer).pair(parse_record(line, "f"), LengthLimits(10**6)), original[index])


def test_lengths_are_those_of_the_sides(original):
    for index in range(len(original)):
        pair = original[index]
        assert original.lengths(index) == (len(pair.chosen.input_ids), len(pair.rejected.input_ids))
        shared = original.shared_prefix_length(index)
        assert shared == shared_prefix_length(pair.chosen.input_ids, pair.rejected.input_ids)
        assert np.array_equal(pair.chosen.input_ids[:shared], pair.rejected.input_ids[:shared])


def test_there_are_no_pairs_outside_the_range(original):
    for index in (-1, len(original)):
        with pytest.raises(IndexError):
            original[index]


def test_a_pickled_dataset_gives_the_same_pairs(original):
    assert equal(pickle.loads(pickle.dumps(original))[1], original[1])


def test_a_pair_outlives_its_dataset(prefix):
    pair = PreferenceDataset(prefix)[0]  # the dataset, and Megatron's memory map, are gone here
    assert pair.chosen.input_ids.sum() > 0


def test_a_sound_dataset_has_no_problems(original, tokenizer):
    assert list(find_problems(original, tokenizer)) == []


def test_a_dataset_without_its_manifest_is_refused(prefix):
    Path(f"{prefix}.json").unlink()
    with pytest.raises(UserError, match="no such manifest"):
        PreferenceDataset(prefix)


@pytest.mark.parametrize("suffix", ["bin", "idx"])
@pytest.mark.parametrize("change", [lambda data: data[:-4], lambda data: data + b"\0", None])
def test_a_dataset_with_a_file_of_another_size_is_refused(prefix, suffix, change):
    path = Path(f"{prefix}.{suffix}")
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    with pytest.raises(UserError, match=rf"pairs.{suffix}: has .* bytes, its manifest says"):
        PreferenceDataset(prefix)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 2}', '{"schema_version": 99}', "nonsense"])
def test_a_file_that_is_no_manifest_is_refused(prefix, content):
    Path(f"{prefix}.json").write_text(content)
    with pytest.raises(UserError, match=r"pairs\.json: .*make the dataset anew"):
        PreferenceDataset(prefix)


@pytest.mark.parametrize("offset", [0, 9, 17, 18, 26])
def test_an_index_with_another_header_is_refused(prefix, offset):
    path = Path(f"{prefix}.idx")
    content = bytearray(path.read_bytes())
    content[offset] += 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"pairs\.idx: "):
        PreferenceDataset(prefix)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_any_changed_byte_is_found(original, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("spoilt")
    for suffix in ("bin", "idx", "json"):
        (folder / f"pairs.{suffix}").write_bytes(Path(f"{original.prefix}.{suffix}").read_bytes())
    suffix = data.draw(st.sampled_from(["bin", "idx"]))
    content = bytearray((folder / f"pairs.{suffix}").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / f"pairs.{suffix}").write_bytes(content)
    try:
        dataset = PreferenceDataset(str(folder / "pairs"))
    except UserError:
        return
    assert any(f"pairs.{suffix}: its content is not what" in problem for problem in find_problems(dataset, None))


def rewrite(prefix, **changes):
    path = Path(f"{prefix}.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return PreferenceDataset(prefix)


def test_a_manifest_that_does_not_fit_is_found(prefix, original, tokenizer):
    for changes, problem in (
        ({"num_records": 9}, "9 records are not 4 pairs plus the drops"),
        ({"num_turns": 11}, "11 turns, at most 3 in a pair; the pairs have 12, at most 3"),
        ({"max_turns": 2}, "12 turns, at most 2 in a pair; the pairs have 12, at most 3"),
        ({"data_hash": "0"}, "data_hash is not that"),
        ({"seq_length": 200}, "the limit was 200"),
        ({"short_seq_length": 20}, "longer than the limit of 20"),
        ({"max_token_id": 5}, "an id above the manifest's max_token_id 5"),
        ({"tokenizer": {**dataclasses.asdict(original.manifest.tokenizer), "fingerprint": "0"}}, "its fingerprint is not"),
    ):
        before = Path(f"{prefix}.json").read_bytes()
        assert any(problem in found for found in find_problems(rewrite(prefix, **changes), tokenizer)), changes
        Path(f"{prefix}.json").write_bytes(before)


def test_a_document_id_that_occurs_twice_is_found(original, tmp_path):
    sequences = [pack_pair(original[index]) for index in (0, 1, 0, 3)]
    files = write_indexed(str(tmp_path / "pairs"), sequences)
    write_manifest(str(tmp_path / "pairs"), dataclasses.replace(original.manifest, files=files, data_hash=data_hash(files)))
    found = list(find_problems(PreferenceDataset(str(tmp_path / "pairs")), None))
    assert found == [f"pair 2 ({original.document_id(0)!r}): its document id occurs twice"]


@pytest.mark.parametrize("span", [(3, 3), (4, 2), (-1, 2), (0, 99)])
def test_a_span_outside_its_sequence_is_found(original, span):
    pair = original[0]
    assert check_pair(pair) == []
    broken = dataclasses.replace(pair, short_rejected=(Side(np.arange(20, dtype=np.int32), (span,)), *pair.short_rejected[1:]))
    assert check_pair(broken) == [
        f"short rejected 0 answer span [{span[0]}, {span[1]}) is empty, out of order or outside [0, 20)"
    ]


def inspect(monkeypatch, *arguments):
    """Run the command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["inspect", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(INSPECT), run_name="__main__")
    return exit_.value.code


def test_dump_writes_the_documented_json(prefix, original, monkeypatch, tmp_path):
    assert inspect(monkeypatch, prefix, "--dump", 2, "--output", tmp_path / "pair.json") == 0
    written = json.loads((tmp_path / "pair.json").read_text())
    pair = original[2]
    assert written["chosen"]["input_ids"] == pair.chosen.input_ids.tolist()
    assert written["rejected"]["answer_spans"] == [list(span) for span in pair.rejected.answer_spans]
    assert len(written["reference"]) == pair.num_turns
    assert written["reference"][1]["rejected"] == {
        "input_ids": pair.short_rejected[1].input_ids.tolist(),
        "answer_span": list(pair.short_rejected[1].answer_spans[0]),
    }


def test_verify_exits_with_one_when_something_is_wrong(prefix, original, monkeypatch, capsys):
    tokenizer = ("--tokenizer-model", f"{original.prefix}-tokenizer")
    assert inspect(monkeypatch, prefix, "--verify", *tokenizer) == 0
    path = Path(f"{prefix}.bin")
    path.write_bytes(bytes([path.read_bytes()[0] ^ 2]) + path.read_bytes()[1:])
    assert inspect(monkeypatch, prefix, "--verify", *tokenizer) == 1
    assert "format version 0" in capsys.readouterr().out


def test_show_marks_answers_template_and_sharing(prefix, original, tokenizer, monkeypatch, capsys):
    options = ("--show", 0, "--tokenizer-model", f"{original.prefix}-tokenizer")
    assert inspect(monkeypatch, prefix, *options, "--color", "never") == 0
    plain = capsys.readouterr().out
    pair = original[0]
    for side in (pair.chosen, pair.rejected, *pair.short_chosen, *pair.short_rejected):
        for span in side.answer_spans:
            assert f"[[{tokenizer.decode(side.input_ids[slice(*span)])}]]" in plain
    assert "((<|im_start|>system\n" in plain
    assert "<<<|im_start|>system\n" in plain
    assert inspect(monkeypatch, prefix, *options, "--color", "always") == 0
    assert "\x1b[1;32m" in capsys.readouterr().out


def test_statistics_count_what_is_there(prefix, original, monkeypatch, capsys):
    assert inspect(monkeypatch, prefix) == 0
    shown = capsys.readouterr().out
    assert "pairs       4 of 4 records, 12 turns" in shown
    chosen = [original.lengths(index)[0] for index in range(4)]
    assert original.manifest.lengths["chosen"] == {
        "count": 4, "minimum": min(chosen), "mean": sum(chosen) / 4, "maximum": max(chosen)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--show", 4), "there is no pair 4; it has pairs 0 to 3"),
        (("--dump", 0), "--dump N and --output FILE belong together"),
        (("--show", 0, "--tokenizer-model", "nowhere"), "--tokenizer-model nowhere: no such folder or file"),
    ],
)
def test_a_users_mistake_is_one_line(prefix, monkeypatch, capsys, arguments, message):
    assert inspect(monkeypatch, prefix, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
