"""How documents of each domain are cut: one table of cutters, from the coarsest to the finest."""

from __future__ import annotations

import types
from collections.abc import Mapping

from megatron_longpo.generation import cutting_latex, cutting_markup
from megatron_longpo.generation.cutting import (
    LINE_END,
    PARAGRAPH_END,
    SENTENCE_END,
    WORD_END,
    Chunker,
    Cutter,
    cut_after,
)
from megatron_longpo.generation.cutting_code import SOURCE_SUFFIXES, cut_blocks, cut_files

__all__ = ["CHUNKERS", "SUFFIX_DOMAINS", "Chunker", "Cutter"]

_PARAGRAPHS, _LINES, _SENTENCES, _WORDS = map(cut_after, (PARAGRAPH_END, LINE_END, SENTENCE_END, WORD_END))
_TEXT: Chunker = (_PARAGRAPHS, _LINES, _SENTENCES, _WORDS)
_MARKUP: Chunker = (
    *cutting_markup.HEADING_CUTTERS,
    _PARAGRAPHS,
    cutting_markup.cut_html_blocks,
    _LINES,
    _SENTENCES,
    _WORDS,
)

CHUNKERS: Mapping[str, Chunker] = types.MappingProxyType(
    {
        "text": _TEXT,
        "book": _TEXT,
        "arxiv": (*cutting_latex.HEADING_CUTTERS, *_TEXT),
        "code": (cut_files, cut_blocks, _PARAGRAPHS, _LINES, _WORDS),
        "markdown": _MARKUP,
        "html": _MARKUP,
    }
)
"""The chunker of each domain. ``book`` is another name of ``text``, ``html`` of ``markdown``."""

SUFFIX_DOMAINS: Mapping[str, str] = types.MappingProxyType(
    {
        **dict.fromkeys((".txt", ".text", ".rst"), "text"),
        **dict.fromkeys((".md", ".markdown", ".html", ".htm", ".xhtml"), "markdown"),
        **dict.fromkeys((".tex", ".latex"), "arxiv"),
        **dict.fromkeys(SOURCE_SUFFIXES, "code"),
    }
)
"""The files of a folder that are documents, by suffix, and the domain that each is guessed to be of."""
