from __future__ import annotations

import dataclasses
import html.parser
import json
import re
import struct
import zlib

import pytest

from megatron_longpo.evaluation import published, ruler
from megatron_longpo.evaluation.models import Model
from megatron_longpo.evaluation.plan import Plan
from megatron_longpo.evaluation.report import write_reports
from megatron_longpo.evaluation.report_drawings import _heatmap
from megatron_longpo.evaluation.run import evaluate
from megatron_longpo.evaluation.tables import Cell, make_tables
from megatron_longpo.utils.errors import UserError
from tests.support.evaluation import Reader


@pytest.fixture(scope="module")
def plan(haystack):
    return Plan(
        seed=1, lengths=[1024, 4096], samples=2, temperature=0.0, haystack=haystack, generated=ruler.make_tasks(None, None),
        books=[], book_length=4096, short=[], short_data=None, limit=None, save_prompts=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def output(tmp_path_factory, plan, tokenizer):
    """Two models: one that reads, one that writes markup."""
    folder = tmp_path_factory.mktemp("output")
    for name, reply in (("reads", Reader().reply), ("breaks", lambda message: "</div><script>alert('x')</script> & 1234567")):
        model = Model(name=name, tokenizer=tokenizer, engine=Reader(reply=reply), context_length=None, folder=None)
        evaluate(plan, model, folder / name)
    return folder


@pytest.fixture(scope="module")
def lines(output):
    return list(write_reports(output))


def results_of(output):
    return [json.loads((output / name / "results.json").read_text()) for name in ("breaks", "reads")]


def test_the_console_shows_our_rows_and_where_the_report_is(output, lines):
    text = "\n".join(lines)
    assert re.search(r"^reads +100\.0 +100\.0 +100\.0$", text, re.MULTILINE)
    assert "Averages of breaks, reads: without qa_1, qa_2." in text
    assert "published" not in text
    assert lines[-1] == f"report: {output / 'report.html'}"


def test_every_published_row_stands_in_the_tables_and_is_marked(output):
    tables = {table.title: table for table in make_tables(results_of(output))}
    by_length = tables["RULER: mean of the tasks, by length"]
    assert by_length.head == ["1K", "4K", "8K", "16K", "32K", "64K", "128K", "mean"]
    papers = [row for row in by_length.rows if row.published]
    assert [row.model for row in papers] == [paper.model for paper in published.BY_LENGTH]
    for row, paper in zip(papers, published.BY_LENGTH, strict=True):
        assert row.cells[0].value is None
        assert tuple(cell.value for cell in row.cells[1:-1]) == paper.tasks
    groups = tables["RULER: groups, mean over lengths"]
    assert sum(row.published for row in groups.rows) == len(published.LONG)
    assert [row.model for row in groups.rows if not row.published] == ["breaks", "reads"]


def test_published_averages_follow_from_published_groups():
    """The paper's own rows, but for its rounding: a slip of ours in copying them would show."""
    for paper in published.BY_LENGTH:
        for place, thirteen in enumerate(paper.tasks):
            scores = {name: paper.groups[group][place] for group, names in ruler.GROUPS.items() for name in names}
            assert ruler.average_tasks(scores).value == pytest.approx(thirteen, abs=0.06)
    for row in published.LONG:
        assert sum(row.ruler[:3]) / 3 == pytest.approx(row.ruler[3], abs=0.02)
        off = 1.0 if row.model == "Mistral-7B DPO" else 0.0  # printed so: 25.56, of numbers whose mean is 24.56
        assert sum(row.infinitebench[:3]) / 3 + off == pytest.approx(row.infinitebench[3], abs=0.02)


def test_markdown_has_each_table_with_published_rows_in_italics(output, lines):
    text = (output / "report.md").read_text()
    assert text.count("\n## ") == 4
    assert "| *Mistral-7B-LongPO-128K, published* |" in text
    assert re.search(r"^\| reads \| 100\.0 \|", text, re.MULTILINE)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


class Reading(html.parser.HTMLParser):
    VOID = frozenset({"meta", "br", "path", "use"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(output, lines):
    reading = Reading()
    reading.feed((output / "report.html").read_text())
    assert reading.open == []
    return reading


def test_the_page_is_well_formed_and_fetches_nothing(page):
    assert "script" not in page.tags
    assert "image" not in page.tags, "the page's policy shows none"
    assert not [value for name, value in page.attributes if name in ("src", "href") and not value.startswith("#")]
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(set(ids)) == len(ids)


def test_the_page_shows_models_side_by_side_with_published_rows_plots_and_samples(page):
    text = " ".join(page.text)
    assert page.tags.count("svg") == 1 + 3 + 2, "mean, three groups, a heatmap a model"
    for words in ("reads", "breaks", "Mistral-7B-LongPO-128K", "100.0", "reads: 22 samples", "without qa_1, qa_2", "temperature"):
        assert words in text
    assert "published" in page.text, "a tag of its own"
    assert "</div><script>alert('x')</script> & 1234567" in text


def test_models_with_other_settings_are_named(output, plan, tokenizer, tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        model = Model(name=name, tokenizer=tokenizer, engine=Reader(), context_length=None, folder=None)
        evaluate(dataclasses.replace(plan, seed=seed, samples=seed, lengths=[1024]), model, tmp_path / name)
    lines = list(write_reports(tmp_path))
    warning = "two was run with other settings than one: ruler.samples, seed"
    assert warning in lines
    assert warning in (tmp_path / "report.md").read_text()
    assert warning in (tmp_path / "report.html").read_text()


def test_models_that_were_asked_the_same_are_not_warned_about(lines):
    assert not any("other settings" in line for line in lines)


def read_png(content):
    """Width, height and the raw rows of an RGBA PNG without interlacing."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    data, place = b"", 8
    while place < len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 8] == b"IDAT":
            data += content[place + 8 : place + 8 + size]
        place += size + 12
    return width, height, zlib.decompress(data)


def test_each_model_has_a_heatmap_as_png(output, lines):
    for name in ("reads", "breaks"):
        width, height, data = read_png((output / name / "needles.png").read_bytes())
        assert width >= 700
        assert height >= 600
        assert len(data) == height * (4 * width + 1)
    assert (output / "reads" / "needles.png").read_bytes() != (output / "breaks" / "needles.png").read_bytes()


def test_a_heatmaps_cell_stands_at_its_length_and_depth():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    needles = [
        {"length": 1024, "depth": 0.0, "found": 100.0, "count": 4},
        {"length": 4096, "depth": 0.7, "found": 25.0, "count": 4},
    ]
    _heatmap(axes, needles)
    mesh = axes.collections[0].get_array().reshape(10, 2)
    assert mesh[0, 0] == 100.0
    assert mesh[7, 1] == 25.0
    assert mesh.mask.sum() == 18
    assert {(text.get_text(), *text.get_position()) for text in axes.texts} == {("100", 0.5, 0.5), ("25", 1.5, 7.5)}
    assert axes.yaxis_inverted(), "the start of the text is at the top"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1K", "4K"]


def test_a_folder_without_results_and_damaged_results_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no results of a model"):
        list(write_reports(tmp_path))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"results.json: not results of this command"):
        list(write_reports(tmp_path))


@pytest.mark.parametrize(
    ("cell", "text"), [(Cell(None), "-"), (Cell(12.34), "12.3"), (Cell(50.0, 4.56), "50.0 ±4.6"), (Cell(0.0, 0.0), "0.0")]
)
def test_a_cell_shows_one_decimal_and_its_error(cell, text):
    assert str(cell) == text
