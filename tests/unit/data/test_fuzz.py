"""Ten thousand spoilt lines: none brings a traceback, none is taken for what it is not, none costs a sound record."""

import json
import random
from pathlib import Path

import pytest

from megatron_longpo.data import text_source
from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.inspection import find_problems
from megatron_longpo.data.preprocess import PreprocessOptions, preprocess
from megatron_longpo.data.record import RECORD_FIELDS, TURN_FIELDS, RecordError, read_record
from megatron_longpo.data.tokenizer import TokenizerSpec
from megatron_longpo.utils.errors import UserError
from tests.support.make_data import make_record, make_tokenizer
from tests.support.mutations import KINDS, mutate

FILES, SPOILT, SOUND = 10, 1050, 50
"""Files, and in each of them lines that are spoilt and records that are not."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return TokenizerSpec(str(make_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


def sound_record(rng, name):
    record = json.loads(make_record(rng, name, rng.randint(1, 2), 15).to_json())
    record["long_context"] += rng.choice(("", " é", " 😀", "\n文"))
    record["metadata"] = {"turns": [{"finish_reason_chosen": "stop"} for _ in record["turns"]], "source": {"page": 7}}
    return record


def is_record(line):
    """Whether a line is what docs/data-format.md says, told by other code than the product's."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
        strings = [value["document_id"], value["long_context"], *(turn[name] for turn in value["turns"] for name in TURN_FIELDS)]
        "".join(strings).encode()
        metadata = value.get("metadata", {})
        sound = set(value) <= set(RECORD_FIELDS) and 0 < len(value["document_id"]) <= 4096 and isinstance(metadata, dict)
        return sound and all(set(turn) == set(TURN_FIELDS) for turn in value["turns"]) and bool(value["turns"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def spoilt_file(rng, number):
    """Lines in random order: spoilt ones, and sound records with the ids that are expected to come through."""
    sound = [f"sound-{number}-{i}" for i in range(SOUND)]
    lines = [mutate(rng, sound_record(rng, f"spoilt-{number}-{i}")) for i in range(SPOILT)]
    for name in sound:
        lines.insert(rng.randint(0, len(lines)), json.dumps(sound_record(rng, name)).encode())
    taken, kept = set(), []
    for line in lines:  # a spoilt id may be that of another record, which is an error of its own
        try:
            name = read_record(line).document_id
        except RecordError:
            name = None
        if name is None or name not in taken:
            kept.append(line)
            taken.add(name)
    return kept, sound


@pytest.mark.parametrize("number", range(FILES))
def test_spoilt_lines_are_listed_and_sound_records_come_through(tokenizer, tmp_path, monkeypatch, number):
    monkeypatch.setattr(text_source, "UNIT_BYTES", 20_000)
    lines, sound = spoilt_file(random.Random(number), number)
    path, prefix = tmp_path / "spoilt.jsonl", str(tmp_path / "out")
    path.write_bytes(b"\n".join(lines))
    options = {"inputs": (str(path),), "output_prefix": prefix, "tokenizer": tokenizer, "seq_length": 2000}

    bad = [i for i, line in enumerate(lines, start=1) if line.strip() and not reads(line)]
    assert len(bad) > SPOILT / 2
    assert all(not is_record(line) or refused_although_json_reads_it(line) for line in lines if not reads(line))
    assert all(is_record(line) for line in lines if reads(line))
    with pytest.raises(UserError, match=rf"spoilt\.jsonl:{bad[0]}: ") as error:
        preprocess(PreprocessOptions(**options))
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["spoilt.jsonl"]

    manifest, _ = preprocess(PreprocessOptions(**options, on_bad_record="skip"))
    listed = [json.loads(line) for line in Path(f"{prefix}.bad.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in listed] == bad
    dataset = PreferenceDataset(prefix)
    found = [dataset.document_id(index) for index in range(len(dataset))]
    assert [name for name in found if name in sound] == [json.loads(line)["document_id"] for line in lines if names(line, sound)]
    assert manifest.num_records == len([line for line in lines if reads(line)])
    assert list(find_problems(dataset, tokenizer.load())) == []


def reads(line):
    try:
        read_record(line)
    except RecordError:
        return False
    return True


def names(line, sound):
    return reads(line) and read_record(line).document_id in sound


def refused_although_json_reads_it(line):
    """What Python's reader lets through, and metadata that are too deep or do not fit the turns."""
    try:
        read_record(line)
    except RecordError as error:
        return any(reason in str(error) for reason in ("occurs twice", "is no JSON value", "metadata.turns", "levels deep"))


def test_every_way_to_spoil_a_line_is_tried_and_most_lines_are_spoilt():
    rng = random.Random(0)
    for kind in KINDS:
        made = [kind(rng, sound_record(rng, "d")) for _ in range(100)]
        assert len(set(made)) > 50
        assert sum(not reads(line.replace(b"\n", b" ")) for line in made) >= 10, kind
