"""A YAML file whose values are taken as they are written: ``1e7`` stays ``1e7``, and ``off`` is a word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from megatron_longpo.utils.errors import UserError

MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Strings, lists and mappings; a key that occurs twice is an error."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {"<": [(MERGE, re.compile("^<<$"))]}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(problem="a key must be a word", problem_mark=key.start_mark)
            if key.value in seen and key.tag != MERGE:
                raise yaml.constructor.ConstructorError(problem=f"{key.value} occurs twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> Any:
    """Read a file.

    Raises:
        UserError: it cannot be read, or is not YAML; the message has the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({getattr(error, 'strerror', None) or error})") from None
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
