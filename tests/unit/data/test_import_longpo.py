"""Published, already tokenised data sets: the same pairs come back from the published schema."""

import datasets
import numpy as np
import pyarrow.parquet
import pytest

from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.import_longpo import scan_tokenized
from megatron_longpo.data.inspection import find_problems
from megatron_longpo.data.pair import PreferencePair
from megatron_longpo.data.preprocess import PreprocessOptions, preprocess
from megatron_longpo.data.tokenize_pair import DropReason, LengthLimits
from megatron_longpo.data.tokenizer import TokenizerSpec
from megatron_longpo.utils.errors import UserError
from tests.support.make_data import make_dataset

PAD = 499
NO_LIMIT = LengthLimits(10**6)


def fields(prefix, sides):
    """The three columns of some sides, padded on the right to the longest."""
    longest = max(len(side.input_ids) for side in sides)
    rows = {f"{prefix}_input_ids": [], f"{prefix}_attention_mask": [], f"{prefix}_labels": []}
    for side in sides:
        ids, padding = side.input_ids, longest - len(side.input_ids)
        labels = np.full(len(ids), -100)
        for start, end in side.answer_spans:
            labels[start:end] = ids[start:end]
        rows[f"{prefix}_input_ids"].append([*ids.tolist(), *[PAD] * padding])
        rows[f"{prefix}_attention_mask"].append([1] * len(ids) + [0] * padding)
        rows[f"{prefix}_labels"].append([*labels.tolist(), *[-100] * padding])
    return rows


def published_row(pair: PreferencePair) -> dict:
    """A pair in the published schema."""
    row = {}
    for side in ("chosen", "rejected"):
        row |= {name: value[0] for name, value in fields(side, [getattr(pair, side)]).items()}
        row |= fields(f"ref_{side}", getattr(pair, f"short_{side}"))
        row[f"{side}_lm_labels"] = list(row[f"{side}_input_ids"])
    lm_labels = np.full(len(pair.chosen.input_ids), -100)
    for start, end in pair.content_spans:
        lm_labels[start:end] = pair.chosen.input_ids[start:end]
    row["chosen_lm_labels"] = lm_labels.tolist()
    return row


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs of one, two and three turns."""
    root = tmp_path_factory.mktemp("pairs")
    made = [make_dataset(root / f"turns{turns}", 3, turns, seed=turns) for turns in (1, 2, 3)]
    return [dataset[index] for dataset in made for index in range(len(dataset))], TokenizerSpec(f"{made[0].prefix}-tokenizer")


def write(kind, folder, rows):
    """Write rows as one of the inputs that are accepted; its path."""
    table = datasets.Dataset.from_list(rows)
    path = folder / "data"
    if kind == "saved":
        table.save_to_disk(str(path), num_shards=2)
    elif kind == "parquet":
        path = folder / "data.parquet"
        pyarrow.parquet.write_table(table.data.table, path, row_group_size=2)
    else:
        (path / "train").mkdir(parents=True)
        for shard in range(2):
            rows_of = table.shard(2, shard, contiguous=True).flatten_indices()
            pyarrow.parquet.write_table(rows_of.data.table, path / "train" / f"{shard}.parquet")
    return str(path)


def options(path, tmp_path, **changes):
    settings = {"tokenizer": None, "seq_length": 4096, "input_format": "longpo-tokenized", **changes}
    return PreprocessOptions(inputs=(path,), output_prefix=str(tmp_path / "out"), **settings)


def import_rows(rows, tmp_path):
    path = write("parquet", tmp_path, rows)
    units, _ = scan_tokenized([path], lambda _: None)
    return [result for unit in units for result in unit.pairs(None, NO_LIMIT)]


@pytest.mark.parametrize("kind", ["saved", "parquet", "folder"])
def test_the_same_pairs_come_back(kind, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_longpo.data.import_longpo.ROWS_PER_UNIT", 2)
    originals, tokenizer = pairs
    path = write(kind, tmp_path, [published_row(pair) for pair in originals])
    preprocess(options(path, tmp_path, tokenizer=tokenizer))
    dataset = PreferenceDataset(str(tmp_path / "out"))
    assert len(dataset) == len(originals)
    assert list(find_problems(dataset, tokenizer.load())) == []
    for index, original in enumerate(originals):
        found = dataset[index]
        assert found.content_spans == original.content_spans
        for name in ("chosen", "rejected"):
            ours, theirs = ([getattr(pair, name), *getattr(pair, f"short_{name}")] for pair in (found, original))
            assert [side.input_ids.tolist() for side in ours] == [side.input_ids.tolist() for side in theirs]
            assert [side.answer_spans for side in ours] == [side.answer_spans for side in theirs]


def test_a_newline_that_the_labels_hold_stays_in_the_span(pairs, tmp_path):
    pair = pairs[0][0]
    row = published_row(pair)
    end = pair.chosen.answer_spans[0][1]
    row["chosen_labels"][end] = row["chosen_input_ids"][end]
    assert import_rows([row], tmp_path)[0].chosen.answer_spans[0] == (pair.chosen.answer_spans[0][0], end + 1)


def test_padding_before_the_tokens_is_trimmed_too(pairs, tmp_path):
    pair = pairs[0][4]
    row = published_row(pair)
    for name, filler in (("input_ids", PAD), ("attention_mask", 0), ("labels", -100)):
        row[f"ref_chosen_{name}"] = [[filler, *values] for values in row[f"ref_chosen_{name}"]]
    found = import_rows([row], tmp_path)[0]
    assert [side.answer_spans for side in found.short_chosen] == [side.answer_spans for side in pair.short_chosen]


def spoil(row, column, change):
    return {**row, column: change(row[column])}


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("chosen_labels", lambda labels: [-100] * len(labels)),  # the silent failure of the published script
        ("chosen_labels", lambda labels: [label if label == -100 else label + 1 for label in labels]),
        ("rejected_labels", lambda labels: [label if i < len(labels) * 0.7 else -100 for i, label in enumerate(labels)]),
        ("ref_rejected_labels", lambda turns: [[-100] * len(turns[0]), *turns[1:]]),
    ],
)
def test_unusable_labels_drop_the_row(pairs, tmp_path, column, change):
    row = published_row(pairs[0][-1])
    assert import_rows([spoil(row, column, change)], tmp_path) == [DropReason.LABELS_UNUSABLE]


def test_identical_and_long_rows_are_dropped(pairs, tmp_path):
    row = published_row(pairs[0][0])
    same = {**row, **{name.replace("chosen", "rejected"): row[name] for name in row if name.startswith(("chosen", "ref_chosen"))}}
    assert import_rows([same], tmp_path) == [DropReason.IDENTICAL_SIDES]
    with pytest.raises(UserError, match="1 long_side_too_long"):
        preprocess(options(write("parquet", tmp_path, [row]), tmp_path, seq_length=50))


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("chosen_labels", lambda labels: labels[:-1], "data:0: chosen_.*: ids, mask and labels have"),
        ("chosen_lm_labels", lambda labels: labels[:-1], "data:0: chosen_lm_labels has"),
        ("chosen_input_ids", lambda ids: [ids], "data:0: chosen_input_ids: expected a list of integers"),
        ("ref_chosen_input_ids", lambda turns: turns[0], "data:0: ref_chosen_input_ids: expected a list with a list"),
        ("ref_chosen_labels", lambda turns: turns[:-1], "data:0: ref_chosen_.*: the fields have different numbers of turns"),
        ("chosen_input_ids", lambda ids: [-1, *ids[1:]], r"data:0: chosen_input_ids: ids must be in \[0, 2\*\*31\)"),
    ],
)
def test_a_malformed_field_is_named(pairs, tmp_path, column, change, message):
    with pytest.raises(UserError, match=message):
        import_rows([spoil(published_row(pairs[0][4]), column, change)], tmp_path)


def test_another_tokenizer_than_the_datas_own_is_noticed(pairs, tmp_path):
    row = published_row(pairs[0][0])
    row["chosen_input_ids"][0] = 100_000
    path = write("parquet", tmp_path, [row])
    with pytest.raises(UserError, match="holds id 100000, the tokenizer has"):
        preprocess(options(path, tmp_path, tokenizer=pairs[1]))


def test_inputs_that_are_no_such_data_are_refused(pairs, tmp_path):
    row = published_row(pairs[0][0])
    del row["chosen_lm_labels"]
    with pytest.raises(UserError, match="lacks the column 'chosen_lm_labels'"):
        import_rows([row], tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a readable parquet or arrow file"):
        scan_tokenized([str(tmp_path / "x.parquet")], lambda _: None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a parquet file, a folder of them, nor"):
        scan_tokenized([str(tmp_path / "empty")], lambda _: None)


def test_a_split_must_be_chosen(pairs, tmp_path):
    table = datasets.Dataset.from_list([published_row(pairs[0][0])])
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(UserError, match=r"holds several splits; give one of them: .*both/test, .*both/train"):
        scan_tokenized([str(tmp_path / "both")], lambda _: None)
