"""Laws of the schema's description of itself."""

import re

import pytest

from megatron_longpo.config import fields
from megatron_longpo.config.cli import build_parser
from megatron_longpo.config.fields import all_fields, fields_by_name


def test_names_are_unique_so_one_flag_sets_one_field():
    assert len(list(all_fields())) == len(fields_by_name())


def test_two_fields_of_one_name_are_refused(monkeypatch):
    infos = list(all_fields())
    monkeypatch.setattr(fields, "all_fields", lambda: iter([*infos, infos[0]]))
    fields_by_name.cache_clear()
    with pytest.raises(TypeError, match=infos[0].name):
        fields_by_name()
    fields_by_name.cache_clear()


@pytest.mark.parametrize("info", list(all_fields()), ids=lambda info: info.name)
def test_each_setting_has_help_that_is_a_sentence(info):
    assert info.doc[0].isupper() or info.doc.split()[0].endswith(":")
    assert info.doc.endswith((".", "``."))


def test_help_shows_every_flag_with_its_text():
    shown = " ".join(build_parser().format_help().split())
    for info in all_fields():
        assert info.flag in shown
        assert re.sub(r"\W", "", info.doc) in re.sub(r"\W", "", shown)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train_iters", (int, True, False, ())),
        ("lr", (float, False, False, ())),
        ("bf16", (bool, False, False, ())),
        ("data_path", (str, False, True, ())),
        ("recompute_granularity", (str, True, False, ("full", "selective"))),
        ("nll_scope", (str, False, False, ("all", "no-template", "answers"))),
    ],
)
def test_annotations_become_types(name, expected):
    info = fields_by_name()[name]
    assert (info.kind, info.optional, info.many, info.choices) == expected
