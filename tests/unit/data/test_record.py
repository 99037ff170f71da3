import codecs
import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.data.record import MAX_NESTING, PreferenceRecord, Turn, parse_record
from megatron_longpo.utils.errors import UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TURNS = st.builds(Turn, TEXT, TEXT, TEXT, TEXT)
RECORDS = st.builds(
    PreferenceRecord,
    TEXT.filter(bool),
    TEXT,
    st.lists(TURNS, min_size=1, max_size=4).map(tuple),
    st.dictionaries(TEXT.filter(lambda name: name != "turns"), st.integers()),
)
GOOD = {
    "document_id": "d",
    "long_context": "long",
    "turns": [{"short_context": "s", "instruction": "i", "chosen": "c", "rejected": "r"}],
    "metadata": {},
}
MISSING = object()


@given(RECORDS)
def test_a_record_survives_its_line(record):
    line = record.to_json()
    assert "\n" not in line
    assert parse_record(line, "f:1") == record


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("document_id",), MISSING, "file.jsonl:3: the record: the field 'document_id' is missing"),
        (("document_id",), 7, "file.jsonl:3: document_id: expected a string, found a number"),
        (("document_id",), "", "file.jsonl:3: document_id: is empty"),
        (("long_context",), None, "file.jsonl:3: long_context: expected a string, found null"),
        (("turns",), [], "file.jsonl:3: turns: expected a list of at least one turn, found an empty list"),
        (("turns",), {"a": 1}, "file.jsonl:3: turns: expected a list of at least one turn, found an object"),
        (("turns", 0), "x", "file.jsonl:3: turns[0]: expected an object"),
        (("turns", 0, "chosen"), MISSING, "file.jsonl:3: turns[0]: the field 'chosen' is missing"),
        (("turns", 0, "chosen"), True, "file.jsonl:3: turns[0].chosen: expected a string, found a boolean"),
        (("turns", 0, "choosen"), "x", "file.jsonl:3: turns[0]: unknown field 'choosen'"),
        (("turns", 0, "rejected"), "\ud800", "file.jsonl:3: turns[0].rejected: holds half of a surrogate pair"),
        (("metadata",), [], "file.jsonl:3: metadata: expected an object"),
        (("metadata",), {"turns": [{}, {}]}, "file.jsonl:3: metadata.turns: expected a list of 1 objects"),
        (("source",), "web", "file.jsonl:3: the record: unknown field 'source'; fields of your own belong under metadata"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_field(path, value, message):
    record = copy.deepcopy(GOOD)
    target = record
    for key in path[:-1]:
        target = target[key]
    if value is MISSING:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    with pytest.raises(UserError) as error:
        parse_record(json.dumps(record), "file.jsonl:3")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, *GOOD["turns"][0]]), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=50)
@given(st.binary(max_size=60) | JSON.map(json.dumps))
def test_any_line_is_a_record_or_a_user_error(line):
    try:
        assert isinstance(parse_record(line, "f:1"), PreferenceRecord)
    except UserError as error:
        if not str(error).startswith("f:1: "):
            raise AssertionError("the error does not say where") from error


def test_deep_nesting_is_a_user_error():
    with pytest.raises(UserError, match="not a JSON object"):
        parse_record("[" * 100_000, "f:1")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"document_id": "d", "document_id": "e"}', "the field 'document_id' occurs twice"),
        ('{"document_id": "d", "metadata": {"a": NaN}}', "NaN is no JSON value"),
        ('{"a": -Infinity}', "-Infinity is no JSON value"),
        ('{"a": ' + "9" * 5000 + "}", "not a JSON object"),
        (b'{"a": "\xff"}', "not a JSON object in UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not a JSON object in UTF-8"),
    ],
)
def test_what_json_readers_let_through_or_guess_is_refused(line, reason):
    with pytest.raises(UserError, match=f"f:1: .*{reason}"):
        parse_record(line, "f:1")


def test_nesting_has_a_limit_that_does_not_depend_on_the_stack():
    def nested(levels):
        return json.dumps({**GOOD, "metadata": {"a": json.loads("[" * levels + "]" * levels)}})

    assert parse_record(nested(MAX_NESTING - 2), "f:1").metadata
    with pytest.raises(UserError, match="f:1: metadata: is nested more than 64 levels deep"):
        parse_record(nested(MAX_NESTING), "f:1")


def test_a_message_is_short_whatever_the_line_holds():
    for record in ({**GOOD, "x" * 10**6: 1}, {**GOOD, "document_id": "d" * 10**6}):
        with pytest.raises(UserError) as error:
            parse_record(json.dumps(record), "f:1")
        assert len(str(error.value)) < 400


def test_a_byte_order_mark_is_no_part_of_the_record():
    assert parse_record(codecs.BOM_UTF8 + json.dumps(GOOD).encode(), "f:1").document_id == "d"


def test_metadata_may_be_left_out_but_nothing_else():
    assert parse_record(json.dumps({name: GOOD[name] for name in GOOD if name != "metadata"}), "f:1").metadata == {}


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_the_generation_limit_is_read_from_the_metadata_of_the_turn(side):
    record = copy.deepcopy(GOOD)
    record["metadata"] = {"turns": [{f"finish_reason_{side}": "stop"}]}
    assert not parse_record(json.dumps(record), "f:1").is_cut_off()
    record["metadata"]["turns"][0][f"finish_reason_{side}"] = "length"
    assert parse_record(json.dumps(record), "f:1").is_cut_off()
