"""Preprocessing as a job: the same result whatever the workers, and what a repetition does."""

import json
from pathlib import Path

import pytest

from megatron_longpo.data import parts, text_source
from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.preprocess import PreprocessOptions, preprocess
from megatron_longpo.data.tokenizer import TokenizerSpec
from megatron_longpo.utils.errors import UserError
from tests.support.make_data import make_records, make_tokenizer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = make_tokenizer(folder / "tokenizer")
    return make_records(folder / "records.jsonl", 12, 2), TokenizerSpec(str(tokenizer))


@pytest.fixture
def options(inputs, tmp_path, monkeypatch):
    """Options that give one unit of work for each record or two."""
    monkeypatch.setattr(text_source, "UNIT_BYTES", 2000)

    def build(name="out", **changes):
        settings = {"inputs": (str(inputs[0]),), "tokenizer": inputs[1], "seq_length": 4096, **changes}
        return PreprocessOptions(output_prefix=str(tmp_path / name), **settings)

    return build


def contents(prefix):
    return [Path(f"{prefix}.{suffix}").read_bytes() for suffix in ("bin", "idx", "json")]


def test_the_dataset_does_not_depend_on_workers_or_units(options, monkeypatch):
    preprocess(options("two", workers=2))
    monkeypatch.setattr(text_source, "UNIT_BYTES", 10**9)
    preprocess(options("one", workers=1))
    assert contents(options("one").output_prefix) == contents(options("two").output_prefix)


def test_a_repetition_does_nothing(options, monkeypatch):
    _, worked = preprocess(options())
    before = contents(options().output_prefix)
    monkeypatch.setattr("megatron_longpo.data.preprocess.run_units", None)
    manifest, worked_again = preprocess(options())
    assert (worked, worked_again) == (True, False)
    assert contents(options().output_prefix) == before
    assert manifest.num_pairs == 12


def test_an_interrupted_run_goes_on(options, monkeypatch):
    preprocess(options("straight"))
    original, made = parts._make_part, []

    def make_three(*arguments):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(arguments[1])
        return original(*arguments)

    monkeypatch.setattr(parts, "_make_part", make_three)
    with pytest.raises(KeyboardInterrupt):
        preprocess(options())
    assert not Path(f"{options().output_prefix}.json").exists()
    made_before = set(made)
    made.clear()
    monkeypatch.setattr(parts, "_make_part", lambda *arguments: made.append(arguments[1]) or original(*arguments))
    preprocess(options())
    assert made
    assert not made_before & set(made)
    assert contents(options().output_prefix) == contents(options("straight").output_prefix)
    assert not Path(f"{options().output_prefix}.partial").exists()


def test_parts_of_another_job_are_not_used(options, monkeypatch):
    original = parts._make_part
    monkeypatch.setattr(parts, "_make_part", lambda *arguments: original(*arguments) and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        preprocess(options(seq_length=250))
    monkeypatch.setattr(parts, "_make_part", original)
    assert preprocess(options())[0].num_pairs == 12


def test_another_dataset_at_the_prefix_is_not_overwritten_unasked(options):
    preprocess(options())
    with pytest.raises(UserError, match=r"made with other settings \(seq_length\).*--overwrite"):
        preprocess(options(seq_length=300))
    assert PreferenceDataset(options().output_prefix).manifest.seq_length == 4096
    preprocess(options(seq_length=300, overwrite=True))
    assert PreferenceDataset(options().output_prefix).manifest.seq_length == 300


def test_drops_are_counted_by_reason(options, inputs, tmp_path):
    records = [json.loads(line) for line in inputs[0].read_text().splitlines()]
    records[0]["turns"][0]["chosen"] = " "
    records[1]["metadata"] = {"turns": [{"finish_reason_chosen": "length"}, {}]}
    records[2]["long_context"] *= 20
    path = tmp_path / "some.jsonl"
    path.write_text("\n\n".join(map(json.dumps, records)))
    manifest, _ = preprocess(options(inputs=(str(path),), seq_length=1000))
    assert manifest.drops == {"answer_cut_off": 1, "empty_answer": 1, "long_side_too_long": 1}
    assert (manifest.num_records, manifest.num_pairs) == (12, 9)
    dataset = PreferenceDataset(options().output_prefix)
    assert [dataset.document_id(index) for index in range(9)] == [f"document-{i}" for i in range(3, 12)]


def test_a_dataset_without_pairs_is_not_written(options):
    with pytest.raises(UserError, match=r"no pair is left \(12 long_side_too_long\)"):
        preprocess(options(seq_length=10))
    assert not Path(f"{options().output_prefix}.json").exists()


def test_every_line_is_checked_before_any_work(options, inputs, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(inputs[0].read_text() + '{"document_id": 1}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:13: the record: the field 'long_context' is missing"):
        preprocess(options(inputs=(str(path),)))
    assert not Path(f"{options().output_prefix}.partial").exists()


@pytest.mark.parametrize("deduplicate", [True, False])
def test_a_document_id_that_stands_for_two_documents_is_refused(options, inputs, tmp_path, deduplicate):
    other = make_records(tmp_path / "other.jsonl", 3, 2, seed=1)
    other.write_text("\n\n" + other.read_text())
    with pytest.raises(UserError, match=r"other\.jsonl:3: document_id: 'document-0' is taken by .*records\.jsonl:1; give"):
        preprocess(options(inputs=(str(inputs[0]), str(other)), deduplicate=deduplicate))


def test_a_document_id_that_occurs_twice_is_refused_where_duplicates_are_kept(options, inputs):
    with pytest.raises(UserError, match=r"records\.jsonl:1: document_id: 'document-0' is taken by .*records\.jsonl:1"):
        preprocess(options(inputs=(str(inputs[0]), str(inputs[0])), deduplicate=False))


def test_a_missing_input_is_named(options):
    with pytest.raises(UserError, match="--input nowhere: No such file"):
        preprocess(options(inputs=("nowhere",)))


def test_fingerprints_follow_content_not_place(inputs, tmp_path):
    folder, spec = Path(inputs[1].path), inputs[1]
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    first, second = spec.load(), TokenizerSpec(str(copy)).load()
    assert first.fingerprint == second.fingerprint
    assert first.template_fingerprint == second.template_fingerprint
    other = TokenizerSpec(str(make_tokenizer(tmp_path / "other", 300))).load()
    assert other.fingerprint != first.fingerprint
    assert other.template_fingerprint == first.template_fingerprint
    assert TokenizerSpec(str(copy), "{{ messages }}").load().template_fingerprint != first.template_fingerprint
    assert TokenizerSpec(str(copy), None, '{"a": 1}').load().template_fingerprint != first.template_fingerprint
    assert TokenizerSpec(str(copy), None, '{"a": 1}').load().fingerprint == first.fingerprint


def test_another_tokenizer_at_the_same_place_is_noticed(options, inputs, tmp_path):
    folder = tmp_path / "tokenizer"
    for vocabulary in (300, 500):
        make_tokenizer(folder, vocabulary)
        manifest, _ = preprocess(options(f"out-{vocabulary}", tokenizer=TokenizerSpec(str(folder))))
        assert manifest.tokenizer.vocab_size <= vocabulary
        assert manifest.tokenizer.fingerprint == TokenizerSpec(str(folder)).load().fingerprint
        with pytest.raises(UserError, match="no pair is left"):
            preprocess(options(f"short-{vocabulary}", tokenizer=TokenizerSpec(str(folder)), seq_length=1))


def test_template_arguments_reach_the_template(inputs):
    spec = TokenizerSpec(inputs[1].path, "{{ greeting }} {{ messages[0]['content'] }}", '{"greeting": "Hello"}')
    assert spec.load().render([{"role": "user", "content": "you"}]) == "Hello you"


def test_a_template_that_refuses_a_chat_says_so_in_one_line(inputs):
    tokenizer = TokenizerSpec(inputs[1].path, "{{ raise_exception('no system role here') }}").load()
    with pytest.raises(UserError, match="the chat template cannot render this chat: no system role here"):
        tokenizer.render([{"role": "user", "content": "x"}])


def test_a_template_that_prints_the_date_is_announced(options, inputs, capsys):
    template = Path(inputs[1].path, "chat_template.jinja").read_text()
    dated = TokenizerSpec(inputs[1].path, "{% set today = strftime_now('%Y') %}" + template)
    preprocess(options(tokenizer=dated))
    assert "the chat template prints today's date" in capsys.readouterr().err
