"""Make text files of Jane Austen's six novels, which are in the public domain, from the Debian package that carries them.

A file is a novel as the package has it: its lines, and blank lines between paragraphs. With --max-characters a file is the start
of a novel, cut between paragraphs, and with --per-book so many such parts of each, one behind the other. It takes apt-get and
dpkg-deb, but no R, and installs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_longpo.utils.errors import UserError, run_command

PACKAGE = "r-cran-janeaustenr=1.0.0-1"
DEB = "r-cran-janeaustenr_1.0.0-1_all.deb"
DEB_SHA256 = "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
POOL = "https://deb.debian.org/debian/pool/main/r/r-cran-janeaustenr/"
DATABASE = "usr/lib/R/site-library/janeaustenr/data/Rdata"
BOOKS = ("emma", "mansfieldpark", "northangerabbey", "persuasion", "prideprejudice", "sensesensibility")
STAMP = ".books.json"
"""Beside the texts: what they were made from and of which content. Readers of documents pass over names with a dot."""


def download_package(folder: Path) -> Path:
    """Download the pinned package with apt-get, unless it is there, and check its hash.

    Raises:
        UserError: there is no apt-get or it fails, or the file is not the pinned one.
    """
    package = folder / DEB
    if not package.exists():
        folder.mkdir(parents=True, exist_ok=True)
        cure = f"run apt-get update, or put {DEB} from {POOL} into {folder}"
        _run(["apt-get", "download", "--quiet", PACKAGE], folder, cure)
    with package.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != DEB_SHA256:
        package.unlink()
        raise UserError(f"{package}: sha256 {found} is not the pinned {DEB_SHA256}; the file was removed, run again")
    return package


def read_books(package: Path) -> dict[str, str]:
    """Return the text of each novel.

    Raises:
        UserError: the package cannot be unpacked or does not hold them.
    """
    from r_database import read_texts

    with tempfile.TemporaryDirectory(dir=package.parent) as folder:
        _run(["dpkg-deb", "--extract", str(package), folder], Path(), "remove the file and run again")
        lines = read_texts(Path(folder) / DATABASE)
    if missing := [name for name in BOOKS if name not in lines]:
        raise UserError(f"{package}: has no {missing[0]!r}; remove the file and run again")
    return {name: "\n".join(lines[name]) for name in BOOKS}


def _run(command: list[str], folder: Path, cure: str) -> None:
    what = " ".join(command)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not found; the novels come as a Debian package, run this on Debian or Ubuntu") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg-deb: error"))]
        reason = (errors or done.stderr.strip().splitlines() or ["no message"])[0]
        raise UserError(f"{what!r} failed ({reason}); {cure}")


def cut_at_paragraphs(text: str, max_characters: int) -> Iterator[str]:
    """Give consecutive parts of a text, each as many whole paragraphs as fit into ``max_characters``.

    Blank lines between two parts belong to neither. A part ends with a newline, which is counted.

    Raises:
        UserError: a paragraph does not fit.
    """
    start = end = 0
    for paragraph in re.finditer(r".+(?:\n.+)*", text):
        if end and paragraph.end() - start >= max_characters:
            yield text[start:end] + "\n"
            end = 0
        if not end:
            start = paragraph.start()
        end = paragraph.end()
        if end - start >= max_characters:
            raise UserError(
                f"the paragraph {text[start : start + 40]!r}... has {end - start + 1} characters, more than --max-characters "
                f"{max_characters}; raise it, or take fewer parts"
            )
    if end:
        yield text[start:end] + "\n"


def take_documents(books: Mapping[str, str], max_characters: int | None, per_book: int) -> dict[str, str]:
    """Return the documents by the name of their file, without its suffix.

    Raises:
        UserError: a book has fewer parts.
    """
    if max_characters is None:
        return {name: text.strip("\n") + "\n" for name, text in books.items()}
    documents = {}
    for name, text in books.items():
        parts = cut_at_paragraphs(text, max_characters)
        taken = [part for _, part in zip(range(per_book), parts, strict=False)]
        if len(taken) < per_book:
            raise UserError(f"{name}: has {len(taken)} parts of {max_characters} characters; lower --per-book")
        names = [name] if per_book == 1 else [f"{name}-{number:02d}" for number in range(per_book)]
        documents.update(zip(names, taken, strict=True))
    return documents


def is_done(folder: Path, job: Mapping[str, Any]) -> bool:
    """Tell whether a folder holds what a job makes.

    Raises:
        UserError: something else is there, which is not ours to remove.
    """
    if not folder.exists():
        return False
    try:
        stamp = json.loads((folder / STAMP).read_text())
        found = {path.name: _hash(path.read_bytes()) for path in folder.iterdir() if path.name != STAMP}
        if found == stamp["files"]:
            return bool(stamp["job"] == job)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{folder}: is there already and is not as this command leaves it; remove it or name another --output")


def write_documents(folder: Path, documents: Mapping[str, str], job: Mapping[str, Any]) -> None:
    """Write a folder of text files, whole or not at all; an earlier one of ours is replaced."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = {}
    for name, text in documents.items():
        content = text.encode()
        (partial / f"{name}.txt").write_bytes(content)
        files[f"{name}.txt"] = _hash(content)
    (partial / STAMP).write_text(json.dumps({"job": job, "files": files}, indent=2))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    """Download, check, cut, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write the text files to")
    parser.add_argument("--download", type=Path, help="folder that keeps the downloaded package (default: OUTPUT.download)")
    parser.add_argument("--books", nargs="+", choices=BOOKS, default=list(BOOKS), metavar="NAME", help=", ".join(BOOKS))
    parser.add_argument("--max-characters", type=int, metavar="N", help="most characters of a file (default: the whole novel)")
    parser.add_argument("--per-book", type=int, default=1, metavar="N", help="files of each novel, disjoint parts (default: 1)")
    arguments = parser.parse_args()
    if arguments.per_book < 1 or (arguments.per_book > 1 and arguments.max_characters is None):
        raise UserError("--per-book must be at least 1, and more than one part needs --max-characters")
    if arguments.max_characters is not None and arguments.max_characters < 1:
        raise UserError("--max-characters must be at least 1")
    books = sorted(set(arguments.books))
    output: Path = arguments.output
    job = {"package": DEB_SHA256, "books": books, "max_characters": arguments.max_characters, "per_book": arguments.per_book}
    if is_done(output, job):
        print(f"{output}: done before")
        return
    package = download_package(arguments.download or output.with_name(output.name + ".download"))
    texts = read_books(package)
    documents = take_documents({name: texts[name] for name in books}, arguments.max_characters, arguments.per_book)
    write_documents(output, documents, job)
    sizes = [len(text) for text in documents.values()]
    print(f"{output}: {len(sizes)} text files of {min(sizes)} to {max(sizes)} characters")


if __name__ == "__main__":
    run_command(main)
