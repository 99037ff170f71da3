"""What the pages point at exists, and what they show of the program is what the program does."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_longpo.config.cli import parse_args
from megatron_longpo.config.layout import check_layout
from megatron_longpo.data.packing import PackingOptions, PackItem, pack_pairs
from megatron_longpo.data.pair import PreferencePair, Side
from megatron_longpo.utils.errors import UserError

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FOLDERS = (
    "megatron_longpo", "tests", "tools", "checkpoint_conversion", "examples", "scripts", "docs", "constraints", "benchmarks",
)  # fmt: skip

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
SOURCE = re.compile(rf"(?:(?:{'|'.join(FOLDERS)})/[\w./-]*|[\w./-]+\.(?:py|sh|sbatch))(?:::[\w.]+)?")


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(text: str, page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    for target in LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(text if file == page else file.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


def names_of(file: Path) -> set[str]:
    """Functions, classes, methods (``Class.method``) and constants that a file defines."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def missing_code(text: str) -> list[str]:
    """Files, folders and ``file::name`` in a page's inline code that are not there.

    A path starts at the root or inside the package; a bare file name is looked for in the source folders.
    """
    missing = []
    for token in CODE.findall(prose(text)):
        if not SOURCE.fullmatch(token):
            continue
        path, _, name = token.partition("::")
        places = [ROOT / path, ROOT / "megatron_longpo" / path]
        if "/" not in path:
            places += [file for folder in FOLDERS for file in (ROOT / folder).rglob(path)]
        there = [place for place in places if place.exists()]
        if not there or (name and not any(name in names_of(place) for place in there)):
            missing.append(token)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_at_exists(page):
    text = page.read_text(encoding="utf-8")
    assert broken_links(text, page) == []
    assert missing_code(text) == []


def test_the_readme_leads_to_every_page():
    linked = LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in linked] == []


def test_what_is_broken_is_seen():
    links = "[a](absent.md) [b](testing.md#no-such-heading) [c](#here) [d](testing.md) [e](https://example.org/x.md)\n# Here"
    assert broken_links(links, ROOT / "docs" / "glossary.md") == ["absent.md", "testing.md#no-such-heading"]
    code = (
        "`tests/unit/test_docs.py::test_absent` `tests/unit/test_docs.py::PAGES` `models/absent.py` `models/gpt.py` "
        "`docs/absent/` `absent.py` `schema.py` `megatron_longpo/models/gpt.py::LogProbGPTModel.forward` `--flag` `data/pairs`"
    )
    assert missing_code(code) == ["tests/unit/test_docs.py::test_absent", "models/absent.py", "docs/absent/", "absent.py"]


def refusals() -> list[tuple[str, str, str]]:
    """Rows of the table of refusals: processes, flags, message."""
    page = (ROOT / "docs" / "parallelism.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(--[^`]+)` \| (.+) \|$", page, flags=re.MULTILINE)
    assert rows, "the table is gone"
    return rows


@pytest.mark.parametrize(("processes", "flags", "message"), refusals())
def test_a_refusal_on_the_page_is_the_program_s(processes, flags, message):
    qwen = SimpleNamespace(num_attention_heads=28, num_query_groups=4, num_layers=28, ffn_hidden_size=18944, kv_channels=128)
    run = ["--pretrained-checkpoint", "model", "--data-path", "pairs", "--num-epochs", "1"]
    with pytest.raises(UserError) as refusal:
        check_layout(parse_args([*run, *flags.split()], world_size=int(processes)).parallel, qwen, int(processes))
    assert str(refusal.value) == message


def test_the_drawing_of_the_packed_sequence_is_what_packing_makes():
    page = (ROOT / "docs" / "longpo.md").read_text(encoding="utf-8")
    rows = {name: cells.replace("|", "").split() for name, cells in re.findall(r"^(\w+)  +(.+)$", page, flags=re.MULTILINE)}
    words = sorted({*rows["chosen"], *rows["rejected"]})

    def side(name: str) -> Side:
        ids = np.array([words.index(word) for word in rows[name]], dtype=np.int32)
        return Side(ids, ((4, len(ids)),))

    pair = PreferencePair("drawn", side("chosen"), side("rejected"), (), (), ())
    batch = pack_pairs([PackItem(pair)], PackingOptions())
    assert [words[token] for token in batch.tokens] == rows["token"]
    assert [str(int(position)) for position in batch.position_ids] == rows["position"]
    assert [words[label] if label >= 0 else "-" for label in batch.labels] == rows["label"]
    assert ["*" if owner == 0 else "." for owner in batch.nll_pair] == rows["NLL"]
