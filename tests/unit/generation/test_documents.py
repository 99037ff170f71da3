import datetime
import gzip
import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_longpo.generation import sources
from megatron_longpo.generation.documents import Document, DocumentSource, GivenQuestion
from megatron_longpo.utils.errors import UserError

ROOT = Path(__file__).parents[3]
RECORDS = [
    {"document_id": "b", "text": "B\r\n\n text \u2028é", "metadata": {"source": "x"}, "other": 1},
    {"document_id": "a", "text": "", "metadata": None, "other": 2},
]
DOCUMENTS = [
    Document(document_id="b", text="B\r\n\n text \u2028é", metadata={"source": "x"}, domain="text"),
    Document(document_id="a", text="", metadata={}, domain="text"),
]


def write_lines(path: Path, *lines: str) -> Path:
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return path


def write_records(path: Path, records: Sequence[dict[str, Any]] = RECORDS) -> Path:
    return write_lines(path, *map(json.dumps, records))


def write_parquet(path: Path, records: Sequence[dict[str, Any]] = RECORDS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), path)
    return path


def read(path: Path | str, **options: Any) -> list[Document]:
    return list(DocumentSource(path=str(path), **options).read())


def refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def make_plain(folder: Path) -> Path:
    return write_lines(folder / "d.jsonl", json.dumps(RECORDS[0]), "", json.dumps(RECORDS[1]))


def make_gzip(folder: Path) -> Path:
    path = folder / "d.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(json.dumps(record).encode() + b"\n") for record in RECORDS))
    return path


def make_zstd(folder: Path) -> Path:
    path = folder / "d.jsonl.zst"
    with pyarrow.output_stream(str(path), compression="zstd") as stream:
        stream.write(make_plain(folder).read_bytes())
    return path


def make_parquet(folder: Path) -> Path:
    return write_parquet(folder / "d.parquet")


def make_parquet_folder(folder: Path) -> Path:
    write_parquet(folder / "hub" / "data" / "1.parquet", RECORDS[1:])
    write_parquet(folder / "hub" / "data" / "0.parquet", RECORDS[:1])
    (folder / "hub" / "README.md").write_text("not a document")
    return folder / "hub"


def make_lines_folder(folder: Path) -> Path:
    (folder / "lines").mkdir()
    write_records(folder / "lines" / "1.ndjson", RECORDS[1:])
    write_records(folder / "lines" / "0.jsonl", RECORDS[:1])
    (folder / "lines" / "config.json").write_text("{\n}")
    return folder / "lines"


def make_saved(folder: Path) -> Path:
    import datasets

    datasets.Dataset.from_list(RECORDS[::-1]).select([1, 0]).save_to_disk(folder / "saved", num_shards=2)
    return folder / "saved"


def make_saved_splits(folder: Path) -> Path:
    import datasets

    both = datasets.Dataset.from_list(RECORDS)
    datasets.DatasetDict({"test": both.select([1]), "train": both}).save_to_disk(folder / "splits")
    return folder / "splits"


def make_hub(folder: Path) -> str:
    return f"hf:{make_parquet_folder(folder)}"


@pytest.mark.parametrize(
    "make",
    [
        make_plain,
        make_gzip,
        make_zstd,
        make_parquet,
        make_parquet_folder,
        make_lines_folder,
        make_saved,
        make_saved_splits,
        make_hub,
    ],
)
def test_every_kind_of_source_gives_the_same_documents_each_time(tmp_path: Path, make: Any) -> None:
    path = make(tmp_path)
    assert read(path) == DOCUMENTS
    assert read(path) == DOCUMENTS


def test_a_folder_of_files_gives_each_by_its_path_in_order_with_the_domain_of_its_suffix(tmp_path: Path) -> None:
    contents = {
        "two.txt": b"second\r\n",
        "one.TEX": "\ufeff\\section{é}".encode(),
        "deep/page.html": b"<h1>",
        "deep/page.md": b"# md",
        "deep/script.py": b"x = 1\n",
        "image.png": b"\xff\xfe",
        ".git/notes.txt": b"hidden",
        "deep/.hidden.md": b"hidden",
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = [(document.document_id, document.text, document.domain) for document in read(tmp_path, domain="auto")]
    assert found == [
        ("deep/page.html", "<h1>", "markdown"),
        ("deep/page.md", "# md", "markdown"),
        ("deep/script", "x = 1\n", "code"),
        ("one", "\\section{é}", "arxiv"),
        ("two", "second\r\n", "text"),
    ]
    assert {document.domain for document in read(tmp_path, domain="book")} == {"book"}
    assert [document.document_id for document in read(tmp_path / "two.txt")] == ["two"]


def test_files_whose_names_without_suffix_clash_keep_it(tmp_path: Path) -> None:
    for name in ("a.txt", "a.md", "a.txt.md", "b.c.txt"):
        (tmp_path / name).write_text(name)
    assert {document.document_id: document.text for document in read(tmp_path)} == {
        "a.txt": "a.txt",
        "a.md": "a.md",
        "a.txt.md": "a.txt.md",
        "b.c": "b.c.txt",
    }


def test_columns_go_by_the_names_that_are_given(tmp_path: Path) -> None:
    questions = [{"question": "Who?", "start": 0, "end": 4}, {"question": "What?", "start": 2, "end": 3, "level": 1}]
    records = [
        {"body": "text", "key": 7, "kind": "ArXiv", "asks": questions, "text": "no", "id": "no"},
        {"body": "more", "key": 8, "kind": None, "asks": None, "text": "no", "id": "no"},
    ]
    names = {"text_column": "body", "id_column": "key", "domain_column": "kind", "question_column": "asks", "domain": "code"}
    for path in (write_records(tmp_path / "d.jsonl", records), write_parquet(tmp_path / "d.parquet", records)):
        assert read(path, **names) == [
            Document(
                document_id="7",
                text="text",
                metadata={},
                domain="arxiv",
                questions=(GivenQuestion(text="Who?", start=0, end=4), GivenQuestion(text="What?", start=2, end=3)),
            ),
            Document(document_id="8", text="more", metadata={}, domain="code"),
        ]


def test_different_ids_are_never_taken_for_the_same(tmp_path: Path) -> None:
    path = write_records(tmp_path / "d.jsonl", [{"text": "", "id": number} for number in range(3000)])
    assert [document.document_id for document in read(path)] == [str(number) for number in range(3000)]


def test_a_record_without_an_id_goes_by_its_file_and_place(tmp_path: Path) -> None:
    lines = write_lines(
        tmp_path / "d.jsonl", '{"text": "a"}', "", '{"text": "b", "document_id": null}', '{"text": "c", "id": "x"}'
    )
    assert [document.document_id for document in read(lines)] == ["d.jsonl:1", "d.jsonl:3", "x"]
    write_parquet(tmp_path / "rows" / "in" / "d.parquet", [{"text": "a"}, {"text": "b"}])
    write_parquet(tmp_path / "rows" / "e.parquet", [{"text": "c"}])
    assert [document.document_id for document in read(tmp_path / "rows")] == ["e.parquet:1", "in/d.parquet:1", "in/d.parquet:2"]
    import datasets

    datasets.Dataset.from_list([{"text": "a"}] * 3).save_to_disk(tmp_path / "saved", num_shards=2)
    assert [document.document_id for document in read(tmp_path / "saved")] == ["saved:1", "saved:2", "saved:3"]


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ("{", {}, r"not JSON .* at column 2\); one object a line"),
        ("[]", {}, "not an object but list"),
        ("null", {}, "not an object but null"),
        ("[" * 100_000, {}, "nested too deeply"),
        ("1" * 5000, {}, "too many digits"),
        ('{"body": "x", "id": "b"}', {}, r'no column "text"; there are: body, id .*--text-column'),
        ('{"text": 3}', {}, '"text" must be a string, not int'),
        ('{"text": null}', {}, '"text" must be a string, not null'),
        ('{"text": "x\\ud83d"}', {}, r'"text" has half a surrogate pair \(character 1\)'),
        ('{"text": "", "id": "\\udc00"}', {}, '"id" has half a surrogate pair'),
        ('{"text": "", "id": 1.5}', {}, '"id" must be a string, not float'),
        ('{"text": "", "id": true}', {}, '"id" must be a string, not bool'),
        ('{"text": "", "document_id": " "}', {}, '"document_id" is blank'),
        ('{"text": "", "document_id": "a"}', {}, "the id 'a' is that of document 1 too"),
        ('{"text": ""}', {"id_column": "document_id"}, r'no column "document_id"; there are: text .*--id-column'),
        ('{"text": "", "metadata": {"x": NaN}}', {}, '"metadata" is not JSON'),
        ('{"text": "", "metadata": {"x": "\\ud800"}}', {}, '"metadata" has half a surrogate pair'),
        ('{"text": "", "d": "poem"}', {"domain_column": "d"}, "\"d\" is 'poem'; domains are: text, book, arxiv, code"),
        ('{"text": "", "d": 3}', {"domain_column": "d"}, '"d" is 3; domains are'),
        ('{"text": "", "d": null}', {"domain_column": "d", "domain": "auto"}, "goes by the suffixes of text files"),
        ('{"text": ""}', {"domain_column": "d"}, 'no column "d".*--domain-column'),
        ('{"text": ""}', {"question_column": "q"}, 'no column "q".*--question-column'),
        ('{"text": "", "q": {}}', {"question_column": "q"}, '"q" must be a list'),
        ('{"text": "", "q": ["Who?"]}', {"question_column": "q"}, r'"q"\[0\]: must be an object'),
        ('{"text": "abc", "q": [{"question": " ", "start": 0, "end": 1}]}', {"question_column": "q"}, "not blank"),
        ('{"text": "abc", "q": [{"question": "\\ud800", "start": 0, "end": 1}]}', {"question_column": "q"}, "surrogate"),
        (
            '{"text": "abc", "q": [{"question": "?", "start": true, "end": 1}]}',
            {"question_column": "q"},
            '"start" must be an int',
        ),
        ('{"text": "abc", "q": [{"question": "?", "start": 0}]}', {"question_column": "q"}, '"end" must be an integer'),
        ('{"text": "abc", "q": [{"question": "?", "start": 0, "end": 4}]}', {"question_column": "q"}, "0 to 4 are not .* has 3"),
        ('{"text": "abc", "q": [{"question": "?", "start": 2, "end": 2}]}', {"question_column": "q"}, "2 to 2 are not a part"),
        ('{"text": "abc", "q": [{"question": "?", "start": -1, "end": 2}]}', {"question_column": "q"}, "-1 to 2 are not a part"),
    ],
)
def test_a_bad_line_is_refused_with_file_line_field_and_cure(
    tmp_path: Path, line: str, options: dict[str, str], message: str
) -> None:
    good = {"document_id": "a", "text": "good", "d": "text", "q": None}
    path = write_lines(tmp_path / "d.jsonl", json.dumps(good), line)
    found = refusal(path, **options)
    assert found.startswith(f"{path}:2: ")
    assert re.search(message, found), found


def test_what_is_not_utf_8_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    assert refusal(path).startswith(f"{path}:2: not UTF-8 (byte 10 of the line)")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert refusal(tmp_path / "latin.txt").startswith(f"{tmp_path / 'latin.txt'}: not UTF-8 (byte 3)")
    texts = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\x00\0\0\0\x01\0\0\0\x02\0\0\0"), pyarrow.py_buffer(b"a\xff")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "d.parquet")
    assert refusal(tmp_path / "d.parquet").startswith(f'{tmp_path / "d.parquet"}: row 2: "text" cannot be read (not UTF-8)')


def test_a_bad_row_is_refused_with_file_row_field_and_the_columns_there_are(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d.parquet", [{"id": 1, "text": "a", "url": ""}, {"id": 2, "text": None, "url": ""}])
    assert refusal(path).startswith(f'{path}: row 2: "text" must be a string, not null')
    assert refusal(path, text_column="content").startswith(
        f'{path}: row 1: no column "content"; there are: id, text, url (name one with --text-column'
    )
    for make in (write_parquet, write_records):
        found = refusal(make(tmp_path / f"other.{make.__name__[6:]}", [{"url": "x"}]))
        assert 'no column "text"; there are: url' in found
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    assert 'row 1: "text" cannot be read' in refusal(tmp_path / "twice.parquet")
    (tmp_path / "hub").mkdir()
    write_parquet(tmp_path / "hub" / "other.parquet", [{"url": "x"}])
    assert 'no column "text"; there are: url' in refusal(f"hf:{tmp_path / 'hub'}")
    dated = [{"text": "a", "metadata": {"day": datetime.date(2020, 1, 1)}}]
    assert '"metadata" is not JSON' in refusal(write_parquet(tmp_path / "dated.parquet", dated))


def test_a_source_without_documents_is_refused(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "absent")
    assert "cannot be read" in refusal(tmp_path / ("long" * 1000))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "image.png").touch()
    assert "no documents in it; expected Parquet, JSON Lines, or text files named .ada" in refusal(tmp_path / "empty")
    assert "no documents in it" in refusal(write_lines(tmp_path / "d.jsonl", "", ""))
    table = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    assert "no documents in it" in refusal(tmp_path / "d.parquet")


def test_a_broken_file_is_refused_by_name(tmp_path: Path) -> None:
    for make in (make_gzip, make_zstd, make_parquet):
        path = make(tmp_path)
        path.write_bytes(path.read_bytes()[:-9])
        assert refusal(path).startswith(f"{path}: cannot be read (")
    saved = make_saved(tmp_path)
    shard = saved / "data-00001-of-00002.arrow"
    shard.write_bytes(shard.read_bytes()[:100])
    assert refusal(saved).startswith(f"{shard}: cannot be read (")
    shard.unlink()
    assert refusal(saved).startswith(f"{shard}: cannot be read (")
    (saved / "state.json").write_text("{}")
    assert refusal(saved).startswith(f"{saved / 'state.json'}: not as Dataset.save_to_disk writes it")


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    assert [document.document_id for document in read(make_saved_splits(tmp_path), split="test")] == ["a"]
    assert "no split 'dev'; there are: test, train" in refusal(tmp_path / "splits", split="dev")
    assert "Available splits: ['train']" in refusal(make_hub(tmp_path), split="dev")


def test_an_unknown_domain_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UserError, match=r"--domain poem: unknown; there are: text, book, .*auto"):
        DocumentSource(path="absent", domain="poem")


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    script = """
from megatron_longpo.generation.documents import DocumentSource
from megatron_longpo.utils.errors import run_command
run_command(lambda: list(DocumentSource(path="hf:owner/name:small").read()))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: hf:owner/name:small: cannot be read (")
    assert "Traceback" not in done.stderr


def test_the_hub_without_the_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal("hf:owner/name").endswith("pip install datasets")


def test_a_stream_of_the_hub_that_breaks_off_names_the_last_row(tmp_path: Path) -> None:
    write_lines(tmp_path / "0.jsonl", '{"text": "a"}')
    write_lines(tmp_path / "1.jsonl", "{{{")
    found = refusal(f"hf:{tmp_path}")
    assert "cannot be read after row 1 (" in found


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    """48 MB of documents, compressed and in rows: reading them allocates no more than a few documents at a time."""
    records = [{"text": f"{number} " * 200_000} for number in range(10, 90)]
    with gzip.open(tmp_path / "d.jsonl.gz", "wt", compresslevel=1) as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "d.parquet", row_group_size=4)
    for path in (tmp_path / "d.jsonl.gz", tmp_path / "d.parquet"):
        before = pyarrow.total_allocated_bytes()
        tracemalloc.start()
        highest = 0
        for number, document in enumerate(DocumentSource(path=str(path)).read(), start=10):
            assert document.text.startswith(f"{number} ")
            highest = max(highest, pyarrow.total_allocated_bytes() - before)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak + highest < 12e6, path


def test_a_line_beyond_the_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 20)
    path = write_lines(tmp_path / "d.jsonl", '{"text": "it fits"}', '{"text": "it does not"}')
    assert refusal(path).startswith(f"{path}:2: longer than 20 bytes")
    path.write_bytes(b"x" * 30_000_000)
    tracemalloc.start()
    assert refusal(path).startswith(f"{path}:1: longer than 20 bytes")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_the_bytes_are_there_are_documents_or_one_line_of_error(tmp_path: Path, data: st.DataObject) -> None:
    good = json.dumps(RECORDS[0]).encode() + b"\n"
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, len(good)))
    damaged = good[:start] + data.draw(st.binary(max_size=6)) + good[end:]
    path = tmp_path / data.draw(st.sampled_from(["d.jsonl", "d.jsonl.gz", "d.jsonl.zst", "d.parquet", "d.txt", "d.bin"]))
    path.write_bytes(damaged)
    message = f"{path}: read"
    try:
        read(path)
    except UserError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message
