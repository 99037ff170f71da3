"""What the schema says of itself: each field with its group, type, default and help text, read once from schema.py."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from megatron_longpo.config import schema
from megatron_longpo.config.schema import RunConfig


@dataclasses.dataclass(frozen=True)
class FieldInfo:
    """One setting.

    Attributes:
        group: name of the `RunConfig` attribute that holds it, e.g. ``"objective"``.
        name: name of the field.
        kind: type of one value: bool, int, float or str.
        default: value when nothing sets it.
        choices: values allowed, empty where any value of ``kind`` is.
        optional: None is a value.
        many: the value is a tuple of ``kind``.
        doc: the string under the field, on one line.
    """

    group: str
    name: str
    kind: type
    default: Any
    choices: tuple[str, ...]
    optional: bool
    many: bool
    doc: str

    @property
    def flag(self) -> str:
        """The command-line spelling: ``--context-parallel-size``."""
        return flag_of(self.name)


def flag_of(name: str) -> str:
    """Spell a field name as a flag."""
    return "--" + name.replace("_", "-")


def group_classes() -> dict[str, type]:
    """Return the dataclass of each group of `RunConfig`, in order."""
    hints = typing.get_type_hints(RunConfig)
    return {field.name: hints[field.name] for field in dataclasses.fields(RunConfig)}


def group_name(cls: type) -> str:
    """Return the name under which `RunConfig` holds ``cls``."""
    return next(name for name, candidate in group_classes().items() if candidate is cls)


@functools.cache
def group_fields(group: str) -> tuple[FieldInfo, ...]:
    """Describe the fields of one group, in the order of the schema."""
    cls = group_classes()[group]
    hints = typing.get_type_hints(cls)
    docs = _docs_under_fields(cls)
    return tuple(_describe(group, field, hints[field.name], docs[field.name]) for field in dataclasses.fields(cls))


def all_fields() -> Iterator[FieldInfo]:
    """Describe every setting of a run."""
    for group in group_classes():
        yield from group_fields(group)


@functools.cache
def fields_by_name() -> dict[str, FieldInfo]:
    """Index the settings by name.

    Raises:
        TypeError: two groups have a field of one name; one flag would have to set both.
    """
    index: dict[str, FieldInfo] = {}
    for info in all_fields():
        if info.name in index:
            raise TypeError(f"{info.name} is a field of both {index[info.name].group} and {info.group}; names must be unique")
        index[info.name] = info
    return index


def _docs_under_fields(cls: type) -> dict[str, str]:
    """Read the string literal under each annotated assignment of a class body, joined to one line."""
    tree = ast.parse(inspect.getsource(schema))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    docs = {}
    for statement, following in itertools.pairwise(body):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        match following:
            case ast.Expr(value=ast.Constant(value=str(text))):
                docs[statement.target.id] = " ".join(text.split())
    missing = [field.name for field in dataclasses.fields(cls) if field.name not in docs]
    if missing:
        raise TypeError(f"{cls.__name__} has fields without a string under them: {', '.join(missing)}")
    return docs


def _describe(group: str, field: dataclasses.Field[Any], annotation: Any, doc: str) -> FieldInfo:
    optional = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [argument for argument in typing.get_args(annotation) if argument is not type(None)]
        optional = len(inner) < len(typing.get_args(annotation))
        annotation = inner[0]
    many = typing.get_origin(annotation) is tuple
    if many:
        annotation = typing.get_args(annotation)[0]
    is_literal = typing.get_origin(annotation) is Literal
    allowed = typing.get_args(annotation) if is_literal else tuple(field.metadata.get("choices", ()))
    kind = str if is_literal else annotation
    if kind not in (bool, int, float, str):
        raise TypeError(f"{group}.{field.name}: no flag can hold a value of type {kind}")
    return FieldInfo(group, field.name, kind, field.default, allowed, optional, many, doc)
