"""The generation example's own machinery: R databases read without R, books cut between paragraphs, a model served."""

import collections
import gzip
import hashlib
import itertools
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import httpx2
import pytest

from megatron_longpo.utils.errors import UserError
from tests.support.launch import ROOT
from tests.support.local_server import LETTERS, LocalServer, make_gguf, serve_gguf

EXAMPLE = ROOT / "examples" / "data_generation"


@pytest.fixture
def r_database(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import r_database

    return r_database


@pytest.fixture
def fetch_books(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import fetch_books

    return fetch_books


def word(number: int) -> bytes:
    return number.to_bytes(4, signed=True)


def r_text(text: str | None, flags: int = 0x00040009, encoding: str = "utf-8") -> bytes:
    if text is None:
        return word(9) + word(-1)
    raw = text.encode(encoding)
    return word(flags) + word(len(raw)) + raw


def r_item(value) -> bytes:
    """Write a value: texts, integers or a truth value as a vector of them, else a list with or without names."""
    if value is None:
        return word(254)
    if isinstance(value, bool):
        return word(10) + word(1) + word(value)
    if isinstance(value, dict):
        items = b"".join(map(r_item, value.values()))
        names = word(1) + r_text("names") + r_item(list(value)) if value else word(1) + r_text("names") + word(16) + word(0)
        return word(0x213) + word(len(value)) + items + word(0x402) + names + word(254)
    if all(isinstance(element, int) for element in value):
        return word(13) + word(len(value)) + b"".join(map(word, value))
    if all(isinstance(element, str | None) for element in value):
        return word(16) + word(len(value)) + b"".join(map(r_text, value))
    return word(19) + word(len(value)) + b"".join(map(r_item, value))


def r_value(item: bytes, version: int = 3) -> bytes:
    native = word(5) + b"UTF-8" if version == 3 else b""
    return b"X\n" + word(version) + word(0x040201) + word(0x030500) + native + item


def write_database(folder: Path, variables: dict, compressed=True) -> Path:
    content, places = b"", {}
    for name, value in variables.items():
        data = r_value(r_item(value))
        block = word(len(data)) + zlib.compress(data)
        places[name] = [len(content), len(block)]
        content += block
    index = {"variables": places, "references": {}, "compressed": compressed}
    (folder / "Rdata.rdb").write_bytes(content)
    # The symbol "names" is written once and referred to from then on, as R does.
    first, second = word(0x402) + word(1) + r_text("names"), word(0x402) + word(0x1FF)
    item = r_item(index).replace(first, b"FIRST", 1).replace(first, second).replace(b"FIRST", first)
    (folder / "Rdata.rdx").write_bytes(gzip.compress(r_value(item)))
    return folder / "Rdata"


NOVELS = {"one": ["ONE", "", "A line of £5,", "and more."], "two": ["TWO"], "none": [""]}


def test_the_texts_of_a_database_are_read_by_name(tmp_path, r_database):
    assert r_database.read_texts(write_database(tmp_path, NOVELS)) == NOVELS


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("value", [None, [1, -2], ["a", None, "b"], [["a"], [1]], {"a": ["x"], "b": {"c": [3]}}, {}])
def test_a_value_comes_back(r_database, version, value):
    assert r_database.parse_value(r_value(r_item(value), version)) == value


def test_a_text_is_in_the_encoding_that_its_flags_name(r_database):
    texts = r_text("é", 0x4009, "latin-1") + r_text("é", 0x8009) + r_text("é", 0x9)
    assert r_database.parse_value(r_value(word(16) + word(3) + texts)) == ["é", "é", "é"]


def test_attributes_other_than_names_are_passed_over(r_database):
    attributes = b"".join(word(0x402) + word(1) + r_text(name) + r_item(["x"]) for name in ("class", "comment")) + word(254)
    assert r_database.parse_value(r_value(word(0x210) + word(1) + r_text("a") + attributes)) == ["a"]


OTHER_VALUES = {
    "text form": b"A\n3\n",
    "another version": r_value(r_item(["a"]), 2)[:2] + word(4) + r_value(r_item(["a"]), 2)[6:],
    "another encoding": r_value(r_item(["a"])).replace(b"UTF-8", b"UTF-7"),
    "real numbers": r_value(word(14) + word(1) + bytes(8)),
    "a long vector": r_value(word(16) + word(-1) + word(0) + word(1)),
    "a vector of negative length": r_value(word(16) + word(-1)),
    "more texts than bytes": r_value(word(16) + word(2**31 - 1) + r_text("a")),
    "more integers than bytes": r_value(word(13) + word(2**31 - 1) + word(0)),
    "a text of negative length": r_value(word(16) + word(1) + word(9) + word(-2)),
    "something behind it": r_value(r_item(["a"])) + b"\0",
    "not UTF-8": r_value(word(16) + word(1) + r_text("é", 0x8009, "latin-1")),
    "names for some": r_value(word(0x213) + word(0) + word(0x402) + word(1) + r_text("names") + r_item(["a"]) + word(254)),
    "a name twice": r_value(
        word(0x213) + word(2) + r_item(["x"]) * 2 + word(0x402) + word(1) + r_text("names") + r_item(["a", "a"]) + word(254)
    ),
    "an unknown symbol": r_value(word(0x210) + word(0) + word(0x402) + word(0x1FF) + word(254) + word(254)),
    "a bottomless list": r_value((word(19) + word(1)) * 100_000),
}


@pytest.mark.parametrize("data", OTHER_VALUES.values(), ids=OTHER_VALUES)
def test_a_value_that_is_something_else_is_refused(r_database, data):
    with pytest.raises(r_database.FormatError):
        r_database.parse_value(data)


def test_a_value_that_is_cut_off_anywhere_is_refused(r_database):
    data = r_value(r_item({"a": ["x", None], "b": [[1, 2], ["y"]]}))
    for length in range(len(data)):
        with pytest.raises(r_database.FormatError):
            r_database.parse_value(data[:length])


def damage(place: str, database: Path) -> None:
    index, values = database.with_suffix(".rdx"), database.with_suffix(".rdb")
    content = values.read_bytes()
    match place:
        case "no index":
            index.unlink()
        case "no values":
            values.unlink()
        case "index of something else":
            index.write_bytes(b"PK\3\4 an archive")
        case "index cut off":
            index.write_bytes(index.read_bytes()[:-9])
        case "values cut off":
            values.write_bytes(content[:-1])
        case "a byte changed":
            values.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
        case "another length":
            values.write_bytes(b"\0\0\0\1" + content[4:])


@pytest.mark.parametrize(
    ("place", "file", "told"),
    [
        ("no index", "rdx", "No such file"),
        ("no values", "rdb", "No such file"),
        ("index of something else", "rdx", "no gzipped index"),
        ("index cut off", "rdx", "no gzipped index"),
        ("values cut off", "rdb", "'none' at byte .* beyond the file"),
        ("a byte changed", "rdb", "'one' at byte 0 cannot be decompressed"),
        ("another length", "rdb", "'one' at byte 0 has not the length"),
    ],
)
def test_a_damaged_database_is_refused_in_one_line_with_the_file(tmp_path, r_database, place, file, told):
    database = write_database(tmp_path, NOVELS)
    damage(place, database)
    with pytest.raises(UserError, match=rf"Rdata\.{file}: .*{told}") as caught:
        r_database.read_texts(database)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "compressed", "told"),
    [
        ({"one": [1, 2]}, True, "'one' is no vector of texts"),
        ({"one": ["a", None]}, True, "'one' is no vector of texts"),
        ({"one": {"a": ["x"]}}, True, "'one' is no vector of texts"),
        (NOVELS, [3], r"not compressed by zlib \(compressed: \[3\]\)"),
        (NOVELS, None, "not compressed by zlib"),
    ],
)
def test_a_database_of_something_else_is_refused(tmp_path, r_database, variables, compressed, told):
    with pytest.raises(UserError, match=told):
        r_database.read_texts(write_database(tmp_path, variables, compressed))


BOOK = "TITLE\n\n\n\nFirst line,\nsecond line.\n\n  An indented one.\n\n\nThe last.\n"
PARAGRAPHS = ["TITLE", "First line,\nsecond line.", "  An indented one.", "The last."]


@pytest.mark.parametrize("limit", range(25, 80))
def test_parts_are_whole_paragraphs_each_as_many_as_fit(fetch_books, limit):
    parts = list(fetch_books.cut_at_paragraphs(BOOK, limit))
    assert all(len(part) <= limit and part[:-1] in BOOK and part[-1] == "\n" for part in parts)
    assert [line for part in parts for line in part.splitlines() if line] == [line for line in BOOK.splitlines() if line]
    starts = [BOOK.index(part[:-1]) for part in parts] + [len(BOOK)]
    assert all(BOOK[start:].startswith(tuple(PARAGRAPHS)) for start in starts[:-1]), "a part starts with a paragraph"
    for start, after in itertools.pairwise(starts[:-1]):
        following = next(text for text in PARAGRAPHS if BOOK[after:].startswith(text))
        assert after + len(following) + 1 - start > limit, "the next paragraph would not have fitted"


def test_a_paragraph_that_does_not_fit_is_an_error_only_once_it_is_reached(fetch_books):
    parts = fetch_books.cut_at_paragraphs(BOOK, 24)
    assert next(parts) == "TITLE\n"
    with pytest.raises(UserError, match=r"First line,.* has 25 characters, more than --max-characters 24"):
        next(parts)
    assert fetch_books.take_documents({"b": BOOK}, 24, 1) == {"b": "TITLE\n"}


def test_documents_are_named_by_book_and_part(fetch_books):
    books = {"a": BOOK, "b": BOOK.replace("TITLE", "OTHER")}
    assert fetch_books.take_documents(books, None, 1) == books
    assert list(fetch_books.take_documents(books, 40, 2)) == ["a-00", "a-01", "b-00", "b-01"]
    assert fetch_books.take_documents(books, 40, 2)["b-00"] == "OTHER\n\n\n\nFirst line,\nsecond line.\n"
    with pytest.raises(UserError, match="a: has 2 parts of 40 characters; lower --per-book"):
        fetch_books.take_documents(books, 40, 3)


def test_a_folder_is_made_once_again_for_another_job_and_never_over_another_s_files(tmp_path, fetch_books):
    folder, job = tmp_path / "books", {"books": ["a"]}
    assert not fetch_books.is_done(folder, job)
    fetch_books.write_documents(folder, {"a": "text\n", "b": "more\n"}, job)
    assert fetch_books.is_done(folder, job)
    assert not fetch_books.is_done(folder, {"books": ["b"]})
    fetch_books.write_documents(folder, {"b": "other\n"}, {"books": ["b"]})
    assert [(path.name, path.read_text()) for path in folder.glob("*.txt")] == [("b.txt", "other\n")]
    assert [path.name for path in tmp_path.iterdir()] == ["books"]
    for spoil in ((folder / "mine.txt").touch, lambda: (folder / "b.txt").write_text("changed\n"), (folder / "b.txt").unlink):
        fetch_books.write_documents(folder, {"b": "other\n"}, job)
        spoil()
        with pytest.raises(UserError, match="books: is there already and is not as this command leaves it"):
            fetch_books.is_done(folder, job)
    (tmp_path / "own").mkdir()
    with pytest.raises(UserError, match="own: is there already"):
        fetch_books.is_done(tmp_path / "own", job)


def write_package(folder: Path, texts: dict, name: str) -> Path:
    """Write a Debian package with a database in it."""
    database = folder / "root" / "usr" / "lib" / "R" / "site-library" / "janeaustenr" / "data"
    database.mkdir(parents=True)
    write_database(database, texts)
    (folder / "root" / "DEBIAN").mkdir()
    (folder / "root" / "DEBIAN" / "control").write_text(
        "Package: made-up\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: made up\n"
    )
    (folder / "books.download").mkdir()
    package = folder / "books.download" / name
    subprocess.run(["dpkg-deb", "--build", folder / "root", package], check=True, capture_output=True)
    return package


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_package_becomes_text_files_below_the_folder_that_one_is_in(tmp_path, fetch_books, monkeypatch, capsys):
    package = write_package(tmp_path, {name: ["", name.upper(), "", "Once.", ""] for name in fetch_books.BOOKS}, fetch_books.DEB)
    monkeypatch.setattr(fetch_books, "DEB_SHA256", hashlib.sha256(package.read_bytes()).hexdigest())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fetch_books.py", "--output", "books", "--books", "emma", "persuasion"])
    fetch_books.main()
    assert {path.name: path.read_text() for path in (tmp_path / "books").glob("*.txt")} == {
        "emma.txt": "EMMA\n\nOnce.\n",
        "persuasion.txt": "PERSUASION\n\nOnce.\n",
    }
    assert [path.name for path in (tmp_path / "books.download").iterdir()] == [fetch_books.DEB], "what was unpacked is gone"
    package.unlink()
    fetch_books.main()
    assert capsys.readouterr().out == "books: 2 text files of 12 to 18 characters\nbooks: done before\n"


def stand_in(folder: Path, monkeypatch, shell: str | None) -> None:
    """Let apt-get be a script, or be nowhere."""
    folder.mkdir()
    if shell is not None:
        (folder / "apt-get").write_text(f"#!/bin/sh\n{shell}\n")
        (folder / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin" if shell else str(folder))


@pytest.mark.parametrize(
    ("shell", "told"),
    [
        (None, "apt-get: not found; .* run this on Debian or Ubuntu"),
        ("echo W: careful >&2; echo E: no such package >&2; exit 100", r"failed \(E: no such package\); run apt-get update"),
        ("exit 3", r"failed \(no message\)"),
        ('echo other > "r-cran-janeaustenr_1.0.0-1_all.deb"', "is not the pinned .*; the file was removed, run again"),
    ],
)
def test_a_package_that_cannot_be_had_is_one_line(tmp_path, fetch_books, monkeypatch, shell, told):
    stand_in(tmp_path / "bin", monkeypatch, shell)
    with pytest.raises(UserError, match=told) as caught:
        fetch_books.download_package(tmp_path / "download")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "download").iterdir()) == []


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("gguf") / "made-up.gguf", context_length=1024)


@pytest.fixture(scope="module")
def server(gguf):
    with serve_gguf(gguf, context_length=512, parallel=2, no_prompt_cache=True) as started:
        yield started


def ask(server: LocalServer, message: str, **fields) -> httpx2.Response:
    payload = {"messages": [{"role": "user", "content": message}], "temperature": 1, "seed": 1, "max_tokens": 400, **fields}
    return httpx2.post(f"{server.url}/chat/completions", json=payload, timeout=60, trust_env=False)


def test_a_served_model_has_the_name_of_its_file_and_not_its_place(server):
    models = httpx2.get(f"{server.url}/models", trust_env=False).json()["data"]
    assert [model["id"] for model in models] == ["made-up"]


def test_what_a_request_does_not_name_leaves_out_no_token(server):
    answer = ask(server, "Hello.").json()
    counts = collections.Counter(answer["choices"][0]["message"]["content"])
    assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 400)
    assert 150 < counts["a"] < 250, "half of 400, give or take five standard deviations"
    assert len(counts) > 60, "the other letters are beyond the 40 likeliest, and each below a twentieth of the likeliest"
    assert set(counts) <= set(LETTERS)


def num_cached(server: LocalServer) -> int:
    return ask(server, "Hello.", max_tokens=3).json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_an_answer_is_that_of_its_seed_and_a_prompt_is_read_from_its_start(server):
    first = ask(server, "Hello.").json()["choices"]
    assert ask(server, "Hello.", seed=2).json()["choices"] != first
    assert ask(server, "Hello.").json()["choices"] == first
    assert ask(server, "Hello.", temperature=0, seed=5).json()["choices"][0]["message"]["content"] == "a" * 400
    assert [num_cached(server) for _ in range(4)] == [0, 0, 0, 0]


def test_a_prompt_that_does_not_fit_one_request_s_share_is_refused(server):
    fits = ask(server, "x" * 480, max_tokens=400).json()
    assert (fits["choices"][0]["finish_reason"], fits["usage"]["total_tokens"]) == ("length", 512)
    answer = ask(server, "x" * 512)
    assert answer.status_code == 400
    assert "exceeds the available context size (512 tokens)" in answer.json()["error"]["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_cleanly(gguf, number):
    with serve_gguf(gguf, context_length=256) as started:
        assert num_cached(started) == 0
        assert num_cached(started) > 10, "without --no-prompt-cache a prompt that was read is known"
        started.process.send_signal(number)
        assert started.process.wait(30) == 0
        assert started.log.read_text() == f"made-up.gguf at {started.url}\n"


def test_a_server_that_does_not_start_is_told_with_its_log(tmp_path, gguf):
    (tmp_path / "bad.gguf").write_bytes(gguf.read_bytes()[:2000])
    with pytest.raises(AssertionError, match=r"ended with 1:\n(.*\n)*error: .*bad.gguf: could not be served"):
        serve_gguf(tmp_path / "bad.gguf").__enter__()
    with pytest.raises(AssertionError, match=r"error: --context-length 2048: the model's file allows 1024; lower it"):
        serve_gguf(gguf, context_length=2048).__enter__()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--gguf", "no-such.gguf", "--port", "0"], "no-such.gguf: no such file"),
        (["--gguf", "README.md", "--port", "65536"], "--port 0 to 65535"),
        (["--gguf", "README.md", "--port", "0", "--parallel", "0"], "must be at least 1"),
    ],
)
def test_bad_options_of_the_server_are_one_line(flags, told):
    command = [sys.executable, EXAMPLE / "serve_gguf.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert told in done.stderr
