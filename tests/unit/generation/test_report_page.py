import html.parser
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.generation.report_page import render_page, write_report
from megatron_longpo.generation.statistics import collect
from megatron_longpo.pages.markup import element, escape
from tests.support.generated_records import make_dropped, make_record

VOID = {"meta", "path", "use", "rect"}
HOSTILE = [
    "<script>alert(1)</script>",
    "</div></main></body></html><script src=https://example.com/x.js></script>",
    "\"><img src=x onerror=alert(1)> ' onmouseover='alert(1)",
    "<![CDATA[ ]]> <!-- --> -->",
    "</style></title></textarea><svg onload=alert(1)>",
    "&lt;b&gt; &amp; &#x3c;",
    "\u202egnp.exe\u2066\u2069\u200f שלום",
    "\x00\x07\x1b[31m\ud800\r\n\r\x85\ufffe",
    "$\\frac{1}{2}$ {braces} %s %(x)s",
    "var(--ink) #0a0a01 url(#x)",
]
ANY_TEXT = st.text(st.characters(), max_size=60) | st.lists(st.sampled_from(HOSTILE), max_size=3).map(" ".join)


@pytest.fixture(scope="module")
def statistics() -> dict:
    dropped = [make_dropped(number) for number in range(40)]
    drops = Counter(f"turn: {row['reason']}" for row in dropped) + Counter({"document: no chunk between the token bounds": 7})
    run = {"seconds": 12.5, "model": {"dtype": "float32"}}
    return collect((make_record(number) for number in range(40)), dropped, drops, run)


@pytest.fixture(scope="module")
def page(statistics: dict) -> str:
    return render_page(statistics)


class Reader(html.parser.HTMLParser):
    """Reads a page: its elements with their attributes in order, its texts, and whether each element is closed in its place."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple]] = []
        self.texts: list[str] = []
        self.others: list[str] = []
        self._open: list[str] = []
        self._fresh = True
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, tuple(attrs)))
        self._fresh = True
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, tuple(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._fresh = True

    def handle_data(self, data: str) -> None:
        if self._fresh:
            self.texts.append("")
        self._fresh = False
        self.texts[-1] += data

    def handle_comment(self, data: str) -> None:
        self.others.append(data)

    handle_pi = unknown_decl = handle_comment


def readable(text: str) -> str:
    """What a reader is to see of a text."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]", "\ufffd", lines)


def without_plots(**texts: str) -> dict:
    """Statistics that show given texts wherever a text of others is shown."""
    get = texts.get
    sample = {name: get(name, "x") for name in ("document_id", "question", "excerpt", "chosen", "rejected")}
    dropped = {name: get(f"dropped_{name}", "x") for name in ("document_id", "reason", "step", "question", "chosen", "rejected")}
    found = collect([], [], {f"turn: {get('drop', 'x')}": 1}, {get("name", "x"): get("value", "x")})
    return {**found, "samples": [{**sample, "chunk_id": 1}], "dropped_samples": [{**dropped, "chunk_id": 2}]}


PLACES = (
    *("document_id", "question", "excerpt", "chosen", "rejected", "drop", "name", "value"),
    *(f"dropped_{name}" for name in ("document_id", "reason", "step", "question", "chosen", "rejected")),
)


@settings(max_examples=150)
@given(st.sampled_from(PLACES), ANY_TEXT)
def test_no_text_breaks_out_of_its_place(place: str, text: str) -> None:
    plain, hostile = Reader(render_page(without_plots())), Reader(render_page(without_plots(**{place: text})))
    assert hostile.elements == plain.elements
    assert hostile.others == plain.others == []


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_shown_as_it_is(place: str, text: str) -> None:
    shown = Reader(render_page(without_plots(**{place: text}))).texts
    assert any(readable(text) in piece for piece in shown)


@given(ANY_TEXT, ANY_TEXT)
def test_an_element_has_what_it_is_given(text: str, value: str) -> None:
    reader = Reader(element("p", text, title=value))
    assert reader.elements == [("p", (("title", readable(value)),))]
    assert "".join(reader.texts) == readable(text)
    assert escape(text).encode().decode() == escape(text)


def test_the_page_is_whole_and_fetches_nothing(page: str) -> None:
    reader = Reader(page)
    assert reader.elements[0] == ("html", (("lang", "en"),))
    active = {"script", "link", "iframe", "object", "embed", "img", "image", "base", "form", "foreignobject", "animate", "set"}
    assert not {tag for tag, _ in reader.elements} & active
    for tag, attributes in reader.elements:
        for name, value in attributes:
            assert not name.startswith("on"), tag
            assert name not in ("src", "action", "srcdoc"), tag
            assert not name.endswith("href") or value.startswith("#"), tag
    assert "url(" not in re.sub(r"url\(#[\w.-]+\)", "", page)
    assert "@import" not in page
    assert "://" not in page


def test_names_in_the_page_are_unique_and_found(page: str) -> None:
    names = [value for _, attributes in Reader(page).elements for name, value in attributes if name == "id"]
    assert len(names) == len(set(names)) > 20
    used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page)
    assert {first or second for first, second in used} <= set(names)


def test_the_page_shows_numbers_plots_drops_and_samples_side_by_side(page: str, statistics: dict) -> None:
    reader = Reader(page)
    titles = [dict(attributes)["aria-label"] for tag, attributes in reader.elements if tag == "svg"]
    assert titles == [
        "turns of a record",
        "tokens of a document",
        "tokens of a chunk",
        "tokens of a question",
        "lengths of chosen and rejected answers",
        "chosen against rejected lengths",
        "log-prob margins",
    ]
    assert f"{statistics['turns']:,}" in reader.texts
    assert reader.texts[reader.texts.index(f"{statistics['parts']:,}") + 1].startswith("records hold a part of their document")
    assert f"{statistics['lengths']['chosen']['mean']:,.1f}" in reader.texts
    for reasons in statistics["drops"].values():
        assert all(reason in reader.texts and f"{count:,}" in reader.texts for reason, count in reasons.items())
    for sample in statistics["samples"]:
        place = reader.texts.index(sample["excerpt"])
        shown = reader.texts[place:]
        assert reader.texts[place - 1] == sample["question"]
        assert shown.index("chosen") < shown.index(sample["chosen"]) < shown.index(sample["rejected"])
    for sample in statistics["dropped_samples"]:
        assert sample["reason"] in reader.texts
        assert sample["chosen"] in reader.texts
    assert "model.dtype" in reader.texts


def test_colours_of_plots_are_those_of_the_page(page: str) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert drawn.count("var(--chosen)") > 1
    assert "var(--rejected)" in drawn
    assert set(re.findall(r"(?:fill|stroke): (?!var|none)[^;\"]*", drawn)) == set()
    assert all(f"{style}:" in page for style in re.findall(r"var\((--\w+)\)", page))


def test_there_is_a_page_of_a_run_that_made_nothing() -> None:
    page = render_page(collect([], [], {}, {}))
    assert "Nothing." in Reader(page).texts
    assert "<svg" not in page


def test_one_turn_of_equal_lengths_can_be_drawn() -> None:
    record = make_record(1)
    record["turns"], about = record["turns"][:1], record["metadata"]["turns"][:1]
    record["metadata"] = {"document_tokens": 1, "turns": [{**about[0], "tokens_chosen": 0, "tokens_rejected": 0}]}
    assert render_page(collect([record], [], {}, {})).count("<svg") == 7


def test_equal_statistics_give_equal_bytes(statistics: dict, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(statistics, tmp_path / f"{name}.json", tmp_path / f"{name}.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.json", "b.html", "b.json"]
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == statistics


def test_any_text_comes_back_from_the_json(tmp_path: Path) -> None:
    found = without_plots(**{place: "".join(HOSTILE) for place in PLACES})
    write_report(found, tmp_path / "report.json", tmp_path / "report.html")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == found
    assert "\ufffd" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_write_that_fails_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = tmp_path / "report.json", tmp_path / "report.html"
    write_report(without_plots(chosen="old"), *paths)
    before = [path.read_bytes() for path in paths]

    def fail(file: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(without_plots(chosen="new"), *paths)
    assert [path.read_bytes() for path in paths] == before
