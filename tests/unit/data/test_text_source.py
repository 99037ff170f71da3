"""Sources are mixed, sampled, deduplicated and split; bad lines end the run or are listed."""

import errno
import itertools
import json
import random
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_longpo.data import jsonl, text_source
from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.inspection import find_problems
from megatron_longpo.data.preprocess import PreprocessOptions, preprocess, preprocess_all
from megatron_longpo.data.text_source import TextInput
from megatron_longpo.data.tokenizer import TokenizerSpec
from megatron_longpo.utils.errors import UserError
from tests.support.make_data import make_record, make_tokenizer

COMMAND = Path(__file__).parents[3] / "tools" / "preprocess_preference_data.py"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return TokenizerSpec(str(make_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


@pytest.fixture
def write(tmp_path):
    def file(name, numbers):
        """Records by number: the same number is the same document, in each file under an id of its own."""
        records = [make_record(random.Random(number), f"{name}-{number}", 1, 40) for number in numbers]
        (tmp_path / name).write_text("".join(record.to_json() + "\n" for record in records), encoding="utf-8")
        return str(tmp_path / name)

    return file


@pytest.fixture
def options(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(text_source, "UNIT_BYTES", 1500)

    def build(*inputs, prefix="out", **changes):
        return PreprocessOptions(
            inputs=inputs, output_prefix=str(tmp_path / prefix), tokenizer=tokenizer, **{"seq_length": 4096, **changes}
        )

    return build


def ids(prefix):
    dataset = PreferenceDataset(prefix)
    return [dataset.document_id(index) for index in range(len(dataset))]


def contents(prefix):
    return [Path(f"{prefix}.{suffix}").read_bytes() for suffix in ("bin", "idx", "json")]


def test_a_document_of_several_sources_is_taken_once_and_counted(options, write):
    manifest, _ = preprocess(options(write("a", [1, 2, 3]), write("b", [3, 4, 4, 1])))
    assert ids(options().output_prefix) == ["a-1", "a-2", "a-3", "b-4"]
    assert manifest.drops == {"duplicate_document": 3}
    assert manifest.num_records == 7
    assert [described["taken"] for described in manifest.job["inputs"]] == [3, 1]
    assert list(find_problems(PreferenceDataset(options().output_prefix), options().tokenizer.load())) == []


def test_duplicates_are_kept_on_request(options, write):
    manifest, _ = preprocess(options(write("a", [1, 2]), write("b", [2]), deduplicate=False))
    assert ids(options().output_prefix) == ["a-1", "a-2", "b-2"]
    assert manifest.drops == {}


def test_so_many_records_of_a_source_are_taken_in_its_order_by_seed(options, write):
    first, second = write("a", range(20)), write("b", range(20, 25))
    taken = {}
    for seed in (1, 2):
        preprocess(options(f"{first}#7", second, prefix=f"out{seed}", seed=seed))
        taken[seed] = ids(options(prefix=f"out{seed}").output_prefix)
    for names in taken.values():
        assert len(names) == 12
        numbers = [int(name.split("-")[1]) for name in names]
        assert numbers == sorted(numbers)
    assert taken[1] != taken[2]


def test_a_file_whose_name_looks_like_a_number_of_records_is_itself(write):
    path = write("a#3", [1])
    assert TextInput.parse(path) == TextInput(path, None)
    assert TextInput.parse(f"{path}#3") == TextInput(path, 3)
    with pytest.raises(UserError, match="takes no record"):
        TextInput.parse("x#0")


@pytest.mark.parametrize("deduplicate", [True, False])
def test_a_split_puts_every_document_in_one_dataset(options, write, deduplicate):
    inputs = write("a", range(20)), write("b", range(10, 30))
    everything = options(*inputs, prefix="whole", deduplicate=deduplicate)
    preprocess(everything)
    divided = options(*inputs, split="6,3,1", deduplicate=deduplicate)
    manifests, worked = preprocess_all(divided)
    assert worked
    assert list(manifests) == [f"{divided.output_prefix}-{name}" for name in ("train", "validation", "test")]
    found = [ids(prefix) for prefix in manifests]
    documents = [{name.split("-")[1] for name in names} for names in found]
    assert [len(each) for each in documents] == [18, 9, 3]
    assert sum(map(len, documents)) == len(set().union(*documents))
    assert sorted(itertools.chain(*found)) == sorted(ids(everything.output_prefix))
    assert sum(manifest.num_records for manifest in manifests.values()) == 40
    assert not Path(f"{divided.output_prefix}.json").exists()
    assert preprocess_all(divided) == (manifests, False)


def test_a_split_does_not_depend_on_workers_but_on_the_seed(options, write):
    path = write("a", range(30))
    prefixes = {}
    for name, changes in (("one", {}), ("two", {"workers": 2}), ("other", {"seed": 7})):
        manifests, _ = preprocess_all(options(path, prefix=name, split="8,2", **changes))
        prefixes[name] = list(manifests)
    for one, two, other in zip(*prefixes.values(), strict=True):
        assert contents(one) == contents(two)
        assert ids(one) != ids(other)


def test_a_split_of_which_one_dataset_is_missing_is_completed(options, write):
    path = write("a", range(10))
    manifests, _ = preprocess_all(options(path, split="8,2"))
    before = {prefix: contents(prefix) for prefix in manifests}
    last = list(manifests)[-1]
    for suffix in ("bin", "idx", "json"):
        Path(f"{last}.{suffix}").unlink()
    _, worked = preprocess_all(options(path, split="8,2"))
    assert worked
    assert {prefix: contents(prefix) for prefix in manifests} == before


def test_no_dataset_of_a_split_is_written_when_one_has_no_pair(options, write):
    path = write("a", range(4))
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    manifests, _ = preprocess_all(options(path, split="3,1", prefix="first"))
    held_out = ids(list(manifests)[1])[0]
    for record in lines:
        if record["document_id"] == held_out:
            record["turns"][0]["chosen"] = " "
    Path(path).write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=r"no pair is left for .*out-validation \(1 empty_answer\)"):
        preprocess_all(options(path, split="3,1"))
    assert not list(Path(options().output_prefix).parent.glob("out-*"))


BAD = ("", "{", '{"document_id": 3}', "[1]", "null", '"\\ud800"', "\x00")
REASONS = ("not a JSON object", "the record: the field 'long_context' is missing", "the record: expected an object")


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_lines_are_left_out_and_listed_and_the_others_come_through(options, write, tmp_path, capsys, workers):
    clean, dirty = write("clean", range(30)), tmp_path / "dirty"
    preprocess(options(clean, prefix="clean-out"))
    lines, bad, rng = [], [], random.Random(0)
    for line in Path(clean).read_text().splitlines():
        for _ in range(rng.randrange(3)):
            lines.append(rng.choice(BAD))
            if lines[-1]:
                bad.append(len(lines))
        lines.append(line)
    dirty.write_text("\n".join(lines))
    manifest, _ = preprocess(options(str(dirty), on_bad_record="skip", workers=workers))
    assert contents(options().output_prefix)[:2] == contents(options(prefix="clean-out").output_prefix)[:2]
    listed = [json.loads(line) for line in Path(f"{options().output_prefix}.bad.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in listed] == bad
    assert {entry["file"] for entry in listed} == {str(dirty)}
    assert all(entry["reason"].startswith(REASONS) for entry in listed)
    described = {"name": "dirty", "records": 30, "bad_lines": len(bad), "taken": 30}
    assert {name: manifest.job["inputs"][0][name] for name in described} == described
    shown = capsys.readouterr().err
    assert f"skipped {dirty}:{bad[0]}: {listed[0]['reason']}" in shown
    assert shown.count(f"skipped {dirty}:") == min(10, len(bad))
    assert f"skipped {len(bad)} lines that are no records; all are listed in {options().output_prefix}.bad.jsonl" in shown


def test_a_list_of_bad_lines_does_not_outlive_them(options, write):
    path = write("a", [1, 2])
    Path(path).write_text(Path(path).read_text() + "{\n")
    preprocess(options(path, on_bad_record="skip"))
    side_file = Path(f"{options().output_prefix}.bad.jsonl")
    assert side_file.exists()
    preprocess(options(write("a", [1, 2]), on_bad_record="skip", overwrite=True))
    assert not side_file.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_bad_line_is_the_one_that_is_named(options, write, workers):
    path = write("a", range(60))
    lines = Path(path).read_text().splitlines()
    lines[40] = lines[57] = "{"
    Path(path).write_text("\n".join(["", *lines]))
    earlier = write("b", [100, 101])
    Path(earlier).write_text(Path(earlier).read_text() + '{"document_id": 1, "long_context": "", "turns": []}')
    with pytest.raises(UserError, match=r"/b:3: document_id: expected a string"):
        preprocess(options(earlier, path, workers=workers))
    with pytest.raises(UserError, match=r"/a:42: not a JSON object in UTF-8"):
        preprocess(options(path, workers=workers))
    assert not list(Path(options().output_prefix).parent.glob("out*"))


@pytest.mark.parametrize("content", ["", "\n \n", "{\n[]\nx"])
def test_a_run_in_which_no_line_is_a_record_fails(options, tmp_path, content):
    (tmp_path / "a").write_text(content)
    with pytest.raises(UserError, match="no line is a record"):
        preprocess(options(str(tmp_path / "a"), on_bad_record="skip"))
    assert not Path(f"{options().output_prefix}.json").exists()


def test_a_line_of_an_absurd_size_is_a_bad_line(options, write, tmp_path, monkeypatch):
    path = write("a", range(5))
    longest = max(map(len, Path(path).read_bytes().splitlines())) + 1
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", longest)
    lines = Path(path).read_text().splitlines()
    Path(path).write_text("\n".join([*lines[:2], "x" * 10**6, *lines[2:]]))
    with pytest.raises(UserError, match=r"/a:3: the line is longer than 0 MiB"):
        preprocess(options(path))
    preprocess(options(path, on_bad_record="skip"))
    assert ids(options().output_prefix) == [f"a-{number}" for number in range(5)]


@pytest.mark.parametrize("change", [lambda text: text.replace("river", "RIVER"), lambda text: "{" * len(text), lambda _: ""])
def test_a_file_that_changes_after_it_was_checked_is_noticed(options, write, monkeypatch, change):
    path = write("a", range(5))
    original = text_source.scan_text

    def scan_then_change(*arguments):
        plan = original(*arguments)
        Path(path).write_text(change(Path(path).read_text()))
        return plan

    monkeypatch.setattr("megatron_longpo.data.preprocess.scan_text", scan_then_change)
    with pytest.raises(UserError, match="/a: changed while it was read; run the command again"):
        preprocess(options(path))
    assert not Path(f"{options().output_prefix}.json").exists()


@pytest.mark.parametrize(
    ("changes", "flag"),
    [({"split": "9,1"}, "split"), ({"deduplicate": False}, "no-deduplicate"), ({"on_bad_record": "skip"}, "on-bad-record")],
)
def test_what_has_no_meaning_for_tokenised_data_is_refused(options, changes, flag):
    with pytest.raises(UserError, match=f"--{flag} is for --input-format jsonl"):
        preprocess_all(options("nowhere", input_format="longpo-tokenized", **changes))


def test_the_command_hands_its_options_on(options, write, monkeypatch, capsys, tmp_path):
    path, more = write("a", range(12)), write("b", [3, 50, 51])
    Path(more).write_text(Path(more).read_text() + "{\n")
    arguments = [f"{path}#8", more, "--output-prefix", str(tmp_path / "out"), "--tokenizer-model", options().tokenizer.path]
    arguments += ["--seq-length", "4096", "--split", "8,2", "--seed", "3", "--no-deduplicate", "--on-bad-record", "skip"]
    monkeypatch.setattr(sys, "argv", ["preprocess", "--input", *arguments, "--workers", "1"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(COMMAND), run_name="__main__")
    assert exit_.value.code == 0
    expected, _ = preprocess_all(
        options(f"{path}#8", more, prefix="again", split="8,2", seed=3, deduplicate=False, on_bad_record="skip")
    )
    for prefix in expected:
        assert contents(prefix) == contents(prefix.replace("again", "out"))
    shown = capsys.readouterr().out
    assert f"{tmp_path / 'out'}-validation: written" in shown
    assert "input       a: 8 of 12 records, 0 bad lines" in shown
    assert "input       b: 3 of 3 records, 1 bad lines" in shown


@pytest.mark.parametrize("workers", [1, 2])
def test_a_place_that_cannot_be_written_is_named(options, write, tmp_path, workers):
    path = write("a", [1, 2])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*Not a directory; run the command again"):
        preprocess(options(path, prefix="file/out", workers=workers))


def test_a_full_disk_while_a_part_is_written_is_named(options, write, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("megatron_longpo.data.parts.os.fsync", full)
    with pytest.raises(UserError, match="out: No space left on device; run the command again to go on"):
        preprocess(options(write("a", [1, 2])))
    assert not Path(f"{options().output_prefix}.json").exists()


def test_a_users_mistake_is_one_line_and_exit_code_one(options, write):
    path = write("a", [1])
    Path(path).write_text("{")
    arguments = ["--input", path, "--output-prefix", f"{path}-out", "--tokenizer-model", options().tokenizer.path]
    result = subprocess.run(
        [sys.executable, COMMAND, *arguments, "--seq-length", "100", "--workers", "2"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {path}:1: not a JSON object")
    assert result.stderr.count("\n") == 1
