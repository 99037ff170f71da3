import json
from pathlib import Path

import pytest

from megatron_longpo.generation.documents import read_documents
from megatron_longpo.utils.errors import UserError


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_reads_json_lines_in_order_with_metadata(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "documents.jsonl",
        json.dumps({"document_id": "b", "text": "B\r\n\n text ", "metadata": {"source": "x"}}),
        "",
        json.dumps({"document_id": "a", "text": ""}),
    )
    documents = list(read_documents(path))
    assert [(document.document_id, document.text, document.metadata) for document in documents] == [
        ("b", "B\r\n\n text ", {"source": "x"}),
        ("a", "", {}),
    ]


def test_reads_a_folder_of_text_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_bytes(b"second\r\n")
    (tmp_path / "one.txt").write_bytes("\ufefffirst".encode())
    (tmp_path / "notes.md").write_text("not a document")
    assert [(document.document_id, document.text) for document in read_documents(tmp_path)] == [
        ("one", "first"),
        ("two", "second\r\n"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"documents.jsonl:2: not JSON"),
        ("[]", r"documents.jsonl:2: expected an object"),
        ('{"text": "x"}', r'documents.jsonl:2: "document_id" must be a string'),
        ('{"document_id": "x", "text": 3}', r'documents.jsonl:2: "text" must be a string'),
        ('{"document_id": "x", "text": "", "metadata": []}', r'"metadata" must be an object'),
        ('{"document_id": "x", "text": "", "source": "y"}', r'unknown field "source"'),
        ('{"document_id": "a", "text": ""}', r"document_id 'a' is that of documents 1 and 2"),
    ],
)
def test_refuses_a_bad_line_by_number_and_field(tmp_path: Path, line: str, message: str) -> None:
    path = write_lines(tmp_path / "documents.jsonl", '{"document_id": "a", "text": "good"}', line)
    with pytest.raises(UserError, match=message):
        list(read_documents(path))


def test_refuses_a_path_without_documents(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no documents"):
        list(read_documents(tmp_path))
    with pytest.raises(UserError, match="no such file"):
        list(read_documents(tmp_path / "absent"))
