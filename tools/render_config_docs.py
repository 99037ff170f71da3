"""Write docs/configuration.md from the schema and the presets, so that the page cannot differ from the program."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_longpo.config.fields import FieldInfo, group_classes, group_fields
from megatron_longpo.config.presets import PRESETS
from megatron_longpo.utils.errors import UserError, run_command

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

Every setting of `pretrain_longpo.py`. `tools/render_config_docs.py` generates this page from
`megatron_longpo/config/schema.py`: edit the schema, then run `make docs`.

A value is taken from the last of these that gives it: the default below, `--preset NAME`, `--config FILE.json`, a flag. The
resolved configuration is saved beside each checkpoint as JSON, grouped by the sections of this page, and `--config` reads it
back (a file may also name only a few settings). Settings that exclude each other, the three lengths of a training and the two
warm-ups, replace each other from one source to the next. Unknown flags and abbreviations are errors. A flag that changes
nothing in the run is warned about.
"""


def main() -> None:
    """Write the page, or with --check only compare."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="Write nothing; fail when the page is not what would be written.")
    arguments = parser.parse_args()
    page = render()
    if not arguments.check:
        PAGE.write_text(page, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
        raise UserError(f"{PAGE} is out of date; run `make docs`")


def render() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION, _presets()]
    for group, cls in group_classes().items():
        head = [f"## {group}\n", f"{cls.__doc__}\n", "| flag | value | default | meaning |", "|---|---|---|---|"]
        parts.append("\n".join([*head, *(_row(info) for info in group_fields(group))]) + "\n")
    return "\n".join(parts)


def _presets() -> str:
    lines = ["## Presets\n", "| preset | sets |", "|---|---|"]
    for name, values in PRESETS.items():
        lines.append(f"| `{name}` | {', '.join(f'`{key}` = {value}' for key, value in values.items())} |")
    return "\n".join(lines) + "\n"


def _row(info: FieldInfo) -> str:
    flag = f"`{info.flag}`" + (f", `--no-{info.flag[2:]}`" if info.kind is bool else "")
    kind = {bool: "", int: "integer", float: "number", str: "text"}[info.kind]
    value = " or ".join(f"`{choice}`" for choice in info.choices) or kind
    default = ("off", "on")[info.default] if info.kind is bool else "" if info.default in (None, ()) else info.default
    default = " ".join(default) if isinstance(default, tuple) else default
    meaning = info.doc.replace("``", "`").replace("|", "\\|")
    return f"| {flag} | {value}{', one or more' if info.many else ''} | {default} | {meaning} |"


if __name__ == "__main__":
    run_command(main)
