import itertools
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.generation.chunkers import CHUNKERS, SUFFIX_DOMAINS, Chunker
from megatron_longpo.generation.chunking import split_units

FRAGMENTS = {
    "text": ["A word. ", "Second? ", "\n", "\n\n", "\r\n\r\n", "\u2028", "\u2029", "\f", "字。"],
    "arxiv": [
        "\\section{A}\n",
        "\\section*{B}",
        "\\subsection[b]{B}\n",
        "\\part{P}\n",
        "\\chapter{C}\r\n",
        "% \\section{no}\n",
        "\\begin{verbatim}\n",
        "\\end{verbatim}\n",
        "\\\\",
        "50\\% ",
        "\\begin{abstract}",
        "\\appendix\n",
        "words here\n\n",
    ],
    "code": [
        "# FILE: a/b.py\n",
        "=== c.h ===\n",
        "<file_sep>",
        "\n// src/x.cc\n",
        "def f():\n",
        "    return 1\n",
        "\n",
        "}\n",
        "@cached\n",
        "# comment\n",
        '"""',
        "/* x\n",
        "*/\n",
    ],
    "markdown": [
        "# One\n",
        "## Two\n",
        "Title\n===\n",
        "\nTitle\n---\n",
        "```python\n",
        "```\n",
        "~~~\n",
        "<h2>Three</h2>",
        "<!--\n",
        "-->\n",
        "<p>words</p>",
        "words here\n\n",
    ],
}
DOMAINS = sorted(FRAGMENTS)


def texts(domain: str) -> st.SearchStrategy[str]:
    anything = st.text(max_size=8)
    return st.lists(st.one_of(st.sampled_from(FRAGMENTS[domain]), anything), max_size=40).map("".join)


def count_words(texts: Sequence[str]) -> list[int]:
    """Count pieces of at most four characters of each word: long words have several tokens, white space none."""
    return [sum(-(-len(word) // 4) for word in text.split()) for text in texts]


def tile(text: str, start: int, end: int, chunker: Chunker, level: int) -> list[tuple[int, int]]:
    cuts = {cut for cut in chunker[level](text, start, end) if start < cut < end}
    return list(itertools.pairwise(sorted({start, *cuts, end})))


def pieces(text: str, domain: str, level: int) -> list[str]:
    """Cut a whole text with one cutter of a domain."""
    return [text[start:end] for start, end in tile(text, 0, len(text), CHUNKERS[domain], level)] if text else []


def units(text: str, domain: str, max_tokens: int) -> list[str]:
    return [text[unit.start : unit.end] for unit in split_units(text, max_tokens, count_words, CHUNKERS[domain])]


@pytest.mark.parametrize("domain", DOMAINS)
@settings(deadline=None)
@given(data=st.data(), max_tokens=st.integers(0, 12))
def test_units_tile_any_text_and_only_a_single_character_is_over_the_bound(
    domain: str, data: st.DataObject, max_tokens: int
) -> None:
    text = data.draw(texts(domain))
    found = split_units(text, max_tokens, count_words, CHUNKERS[domain])
    assert "".join(text[unit.start : unit.end] for unit in found) == text
    assert [unit.start for unit in found] == [0, *(unit.end for unit in found)][: len(found)]
    for unit in found:
        assert unit.start < unit.end
        assert unit.num_tokens == count_words([text[unit.start : unit.end]])[0]
        assert unit.num_tokens <= max_tokens or unit.end - unit.start == 1


@pytest.mark.parametrize("domain", DOMAINS)
@settings(deadline=None)
@given(data=st.data(), max_tokens=st.integers(1, 12))
def test_what_a_coarse_cutter_leaves_whole_and_fits_is_one_unit(domain: str, data: st.DataObject, max_tokens: int) -> None:
    """A finer cutter is used inside of pieces that are too long, and nowhere else."""
    text, chunker = data.draw(texts(domain)), CHUNKERS[domain]
    found = {(unit.start, unit.end) for unit in split_units(text, max_tokens, count_words, chunker)}
    open_pieces = [(0, len(text))] if text else []
    for level in range(len(chunker)):
        following = []
        for start, end in open_pieces:
            spans = tile(text, start, end, chunker, level)
            for first, last in spans:
                if len(spans) > 1 and count_words([text[first:last]])[0] <= max_tokens:
                    assert (first, last) in found
                else:
                    following.append((first, last))
        open_pieces = following


@pytest.mark.parametrize("domain", DOMAINS)
@settings(deadline=None)
@given(data=st.data())
def test_a_cutter_stays_inside_its_span_and_repeats_no_position(domain: str, data: st.DataObject) -> None:
    text = data.draw(texts(domain))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    for cutter in CHUNKERS[domain]:
        cuts = list(cutter(text, start, end))
        assert cuts == sorted(set(cuts))
        assert all(start <= cut <= end for cut in cuts)


HOSTILE = [
    " ",
    "\n",
    "\r",
    "\\",
    "%\n",
    "`",
    "```\n",
    "~~~~\n",
    "<!--\n",
    "<pre>\n",
    "-",
    "- ",
    "#",
    "# ",
    "=",
    "/",
    "//",
    "a/",
    "a.",
    ".",
    '."',
    "/*\n",
    "*/",
    '"""',
    "'''",
    "<h1",
    "<file path=",
    "\\section ",
    "\\begin{verbatim}\n",
    "\\iffalse",
    "\n\n# ",
    "\n// a",
    "\n---\n",
    "File: ",
    "=== a",
    "\n \t",
    "字",
]


@pytest.mark.parametrize("domain", DOMAINS)
def test_time_is_linear_in_texts_that_repeat_the_start_of_anything(domain: str) -> None:
    """30,000 characters that are open for as long as they go on; a quadratic pattern needs seconds for one of them."""
    for part in HOSTILE:
        for text in (part * (30_000 // len(part)), "\n\n" + part * (30_000 // len(part)) + "!"):
            for cutter in CHUNKERS[domain]:
                began = time.process_time()
                for _ in cutter(text, 0, len(text)):
                    pass
                assert time.process_time() - began < 1.0, (part, cutter)


def test_latex_is_cut_at_its_headings_and_keeps_what_is_before_the_first() -> None:
    parts = [
        "\\title{T}\nThe preamble.\n",
        "\\begin{abstract}\nShort.\n\\end{abstract}\n",
        "\\section{One} text\n  \\subsection*{A} a\n",
        "\\section*{Two}\nsee \\sectionmark{x} and \\\\section{y}\n",
        "\\section [short] {Three}\n\\subsubsection{deep}\n",
        "\\appendix\n",
        "\\section{More}\n\n\nParagraph.\n",
        "\\bibliography{refs}\n\\bibliographystyle{plain}\n",
    ]
    assert pieces("".join(parts), "arxiv", 2) == parts
    assert pieces(parts[2], "arxiv", 3) == ["\\section{One} text\n  ", "\\subsection*{A} a\n"]
    assert pieces(parts[4], "arxiv", 4) == ["\\section [short] {Three}\n", "\\subsubsection{deep}\n"]
    book = ["Before.\n\\", "\\\\part{I}\n", "\\part{II}\n\\chapter{1}\n"]
    assert pieces("".join(book), "arxiv", 0) == ["Before.\n\\\\", "\\part{I}\n", book[2]]
    assert pieces(book[2], "arxiv", 1) == ["\\part{II}\n", "\\chapter{1}\n"]


@pytest.mark.parametrize(
    "hidden",
    [
        "% \\section{no}\n",
        "\\\\% \\section{no}\n",
        "\\begin{verbatim}\n% \\section{no}\n\\end{verbatim}\n",
        "\\begin{lstlisting}[language=TeX]\n\\end{verbatim}\\section{no}\n\\end{lstlisting}\n",
        "\\begin{comment}\n\\section{no}\n\\end{comment}\n",
        "\\iffalse\n\\section{no}\n\\fi\n",
        "\\newcommand{\\section}{no}\n",
    ],
)
def test_a_latex_heading_in_a_comment_or_verbatim_text_is_none(hidden: str) -> None:
    parts = ["Start.\n" + hidden, "\\section{Yes} 50\\% ", "\\section{Yes}\n"]
    assert pieces("".join(parts), "arxiv", 2) == parts


def test_a_section_that_fits_is_one_unit_and_a_longer_one_goes_by_what_is_in_it() -> None:
    text = (
        "Preface of words.\n\n\\section{A} one two\n\nthree four\n\n"
        "\\section{B} start\n\n\\subsection{B1} one two three\n\n\\subsection{B2} one two. Three four five six. Seven.\n\neight\n"
    )
    assert units(text, "arxiv", 10) == [
        "Preface of words.\n\n",
        "\\section{A} one two\n\nthree four\n\n",
        "\\section{B} start\n\n",
        "\\subsection{B1} one two three\n\n",
        "\\subsection{B2} one two. ",
        "Three four five six. ",
        "Seven.\n\n",
        "eight\n",
    ]


def test_markdown_is_cut_at_headings_of_every_form() -> None:
    parts = [
        "---\ntitle: front matter\n---\n\n",
        "# One\n\ntext #2 and\n#hashtag\n#!/bin/sh\n    # indented\n\n",
        "Two\r\n===\r\n\r\n### deep\r\n",
        "  <h1 class='x'>Three</h1><header><hr>\n",
        "# # Four\n",
        "#\n",
    ]
    assert pieces("".join(parts), "markdown", 0) == parts
    second = [
        "---\ntitle: x\n---\n\n# One\n\n",
        "Two\n---\nmore\n- item\n---\n\n",
        "## Three ##\n###### six\n",
        "<H2>Four</H2>\n",
    ]
    assert pieces("".join(second), "markdown", 1) == second
    assert pieces(second[2], "markdown", 5) == ["## Three ##\n", "###### six\n"]


@pytest.mark.parametrize(
    "hidden",
    [
        "```python\n# no\n\n# no\n```\n",
        "````\n```\n# no\n````\n",
        "~~~ sh\n# no\n```\n# no\n~~~\n",
        "- item\n\n  ```\n# no\n  ```\n",
        "1. ```\n   x\n# no\n   ```\n",
        "> ```\n# no\n> ```\n",
        "<!-- a\n# no\n-->\n",
        "<pre>\n# no\n</pre>\n",
    ],
)
def test_a_markdown_heading_in_code_or_a_comment_is_none(hidden: str) -> None:
    parts = ["Start ```x``` here.\n" + hidden, "# Yes\n\n", "# Yes\n"]
    assert pieces("".join(parts), "markdown", 0) == parts


@pytest.mark.parametrize(
    ("domain", "level", "text"),
    [
        ("markdown", 0, "Start.\n```\n# no\n\n# no\n"),
        ("markdown", 0, "Start.\n<!-- a\n# no\n"),
        ("arxiv", 2, "Start.\n\\begin{verbatim}\n\\section{no}\n"),
        ("code", 1, 'x = 1\ny = """\n\nno\n\nno\n'),
    ],
)
def test_what_is_left_open_hides_all_that_follows(domain: str, level: int, text: str) -> None:
    assert pieces(text, domain, level) == [text]


def test_html_without_line_ends_is_cut_before_its_blocks() -> None:
    text = "<body><p>One two.</p><div class=a>Three four.</div><pre>five</pre><param></body>"
    assert pieces(text, "html", 7) == [
        "<body>",
        "<p>One two.</p>",
        "<div class=a>Three four.</div>",
        "<pre>five</pre><param></body>",
    ]


@pytest.mark.parametrize(
    "header",
    [
        "# FILE: src/a.py\n",
        "// File: a.c\r\n",
        "/* filename: lib/a.c */\n",
        "<!-- filepath: a.html -->\n",
        "FILE: Makefile\n",
        "File: docs/x.md\n",
        "================\nFILE: a.py\n================\n",
        "=== src/a.py ===\n",
        "--- a.h ---\n",
        "##### File: Makefile.in #####\n",
        "<file_sep>src/a.py\n",
        "<|file_sep|>a.py\n",
        "<reponame>me/it<filename>a.py\n",
        "<filename>src/a.py\n",
        '<file path="src/a.py">\n',
    ],
)
def test_a_repository_in_one_text_is_cut_at_the_headers_of_its_files(header: str) -> None:
    parts = ["int x;\n", f"{header}int y;\n\n\n}}\n", f"{header}\n\nint z;"]
    assert pieces("".join(parts), "code", 0) == parts


def test_a_path_is_a_header_only_alone_in_a_comment_after_a_blank_line() -> None:
    parts = ["// path/to/x.cc\nint x;\n// see/also.cc\n\n", "# setup.py\nx = 1\n\n", "<!-- web/index.html -->\n<p>\n"]
    assert pieces("".join(parts), "code", 0) == parts


@pytest.mark.parametrize(
    "line",
    [
        "# and/or",
        "// x.y",
        "# version 1.2",
        "// see src/a.cc for more",
        "### Helpers ###",
        "=== Results ===",
        "  # FILE: a.py",
        "usage: run <filename>",
        "--- a/file.c",
        "file: x.yml",
        "// http://a.b/c.html",
        "x = 'FILE: a.py'",
    ],
)
def test_other_lines_are_no_headers(line: str) -> None:
    assert pieces(f"int x;\n\n{line}\n\nint y;\n", "code", 0) == [f"int x;\n\n{line}\n\nint y;\n"]


PYTHON = [
    '"""What it is.\n\nAnd more.\n"""\n\nimport os\nimport sys\n\n\n',
    "LIMIT = 3\n\n",
    "# About f.\n\n# More about f.\n@decorated\ndef f():\n    a = 1\n\n    return a\n\n\n",
    'class C:\n    """Text.\n\nunindented\n"""\n\n    def g(self):\n        return {\n            1\n\n        }\n\n',
    "if LIMIT:\n    f()\n\nelse:\n    f()\n",
]
C = [
    "/* License\n\n   text */\n\n// What follows.\n\n#include <a.h>\n#include <b.h>\n\n",
    "#ifdef X\n\n",
    "int f(int a)\n{\n  if (a) {\n\n    return 1;\n  }\n\n}\n\n#endif\n\n",
    "[[nodiscard]]\nclass A {\n\npublic:\n  A();\n\nprivate:\n  int x;\n\n};\n\n",
    "#[derive(Debug)]\nstruct S {\n\n};\n",
]


@pytest.mark.parametrize("blocks", [PYTHON, C])
def test_a_block_begins_at_column_0_after_a_blank_line_with_its_comments_and_ends_with_its_brace(blocks: list[str]) -> None:
    assert pieces("".join(blocks), "code", 1) == blocks


def test_a_file_that_fits_is_one_unit_and_a_longer_one_goes_by_its_blocks() -> None:
    first = "# FILE: a.py\nx = 1\n\n\ny = 2\n\n"
    assert units(first + "# FILE: b.py\nx = 1\n\n\ndef f():\n    a = 1\n\n    b = 2\n    return 1\n", "code", 12) == [
        first,
        "# FILE: b.py\nx = 1\n\n\n",
        "def f():\n    a = 1\n\n    b = 2\n    return 1\n",
    ]


def test_synonyms_and_suffixes_name_chunkers() -> None:
    assert CHUNKERS["book"] is CHUNKERS["text"]
    assert CHUNKERS["html"] is CHUNKERS["markdown"]
    assert set(SUFFIX_DOMAINS.values()) == {"text", "markdown", "arxiv", "code"}
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in SUFFIX_DOMAINS)
