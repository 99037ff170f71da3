"""Command line and JSON to `RunConfig`, and back. Flags, types and help come from the schema; nothing is listed twice.

Precedence: defaults of the schema < ``--preset`` < ``--config FILE.json`` < flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from megatron_longpo.config.fields import FieldInfo, fields_by_name, flag_of, group_classes, group_fields, group_name
from megatron_longpo.config.presets import PRESETS
from megatron_longpo.config.schema import RunConfig
from megatron_longpo.config.validate import EXCLUSIVE_GROUPS, find_ineffective_flags, validate_config
from megatron_longpo.utils.errors import UserError

Group = TypeVar("Group")

DESCRIPTION = """\
Train a language model with the LongPO objective on preference pairs. Start it with plain python for one process, or with
torchrun for several. A setting is taken from the last of these that gives it: default, --preset, --config, flag."""


@dataclasses.dataclass(frozen=True)
class DryRun:
    """A run that is described and not started.

    Attributes:
        num_devices: processes that it would have.
        device_gib: memory of a device, or None where nothing is to be compared with it.
    """

    num_devices: int
    device_gib: float | None = None


def parse_run(argv: Sequence[str] | None = None) -> tuple[RunConfig, DryRun | None]:
    """Read the configuration of a training run, and whether it is only to be described.

    Raises:
        UserError: as `parse_args`; or a flag of the description stands without ``--dry-run``.
    """
    namespace = build_parser().parse_args(argv)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if not namespace.dry_run:
        for name in ("num_devices", "device_gib"):
            if getattr(namespace, name) is not None:
                raise UserError(f"{flag_of(name)} describes a run that is not started; it needs --dry-run")
        return parse_args(argv, world_size=world_size), None
    for name in ("num_devices", "device_gib"):
        if (getattr(namespace, name) or 1) <= 0:
            raise UserError(f"{flag_of(name)} is {getattr(namespace, name)}; it must be greater than 0")
    described = DryRun(namespace.num_devices or world_size, namespace.device_gib)
    return parse_args(argv, world_size=described.num_devices), described


def parse_args(argv: Sequence[str] | None = None, *, world_size: int | None = None) -> RunConfig:
    """Read the whole configuration of a training run.

    Args:
        argv: the arguments after the program's name. Default: those of this process.
        world_size: number of processes that the layout must fit. Default: torchrun's WORLD_SIZE, or 1.

    Returns:
        The validated configuration, with preset, file and flags applied.

    Raises:
        UserError: what was given does not make a run; the message lists every problem.
        SystemExit: argparse's own errors (2) and --help (0).
    """
    namespace = build_parser().parse_args(argv)
    flags = {name: value for name, value in vars(namespace).items() if name in fields_by_name()}
    preset = dict(PRESETS[namespace.preset]) if namespace.preset else {}
    file_values = read_config_file(Path(namespace.config)) if namespace.config else {}
    config = _build(merge_layers(preset, file_values, flags))
    validate_config(config, world_size=world_size or int(os.environ.get("WORLD_SIZE", "1")))
    warnings = find_ineffective_flags(config, given=flags.keys())
    if preset and preset.keys() <= {*file_values, *flags}:
        warnings.append(f"--preset {namespace.preset} has no effect: --config or flags set each of its values")
    if os.environ.get("RANK", "0") == "0":
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
    return config


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of a training run: one argument group for each group of the schema."""
    parser = argparse.ArgumentParser(prog="pretrain_longpo.py", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--preset", choices=sorted(PRESETS), help="Named set of values. The defaults are those of 'paper'.")
    parser.add_argument("--config", metavar="FILE.json", help="Configuration file, e.g. the config.json beside a checkpoint.")
    describing = parser.add_argument_group("dry run")
    describing.add_argument(
        "--dry-run",
        action="store_true",
        help="Say what the run would do, and the memory and operations of its fullest rank; build no model, join no processes.",
    )
    describing.add_argument("--num-devices", type=int, metavar="N", help="Processes of the run. Default: torchrun's, or 1.")
    describing.add_argument("--device-gib", type=float, metavar="X", help="Memory of a device, to tell whether the run fits.")
    for cls in group_classes().values():
        add_config_group(parser, cls)
    return parser


def add_config_group(parser: argparse.ArgumentParser, cls: type, *, omit: Collection[str] = ()) -> None:
    """Add the flags of one group of the schema, e.g. `ParallelConfig`, to any command's parser.

    Flags that are not given leave nothing in the namespace; `read_config_group` puts the defaults in.
    Settings in ``omit``, which mean nothing to the command, get no flag.
    """
    arguments = parser.add_argument_group(group_name(cls), description=(cls.__doc__ or "").strip())
    for info in group_fields(group_name(cls)):
        if info.name not in omit:
            _add_flag(arguments, info)


def read_config_group(namespace: argparse.Namespace, cls: type[Group]) -> Group:
    """Build one group of the schema from a namespace whose parser went through `add_config_group`."""
    given = vars(namespace)
    values = {info.name: given[info.name] for info in group_fields(group_name(cls)) if info.name in given}
    return cls(**_tuples(values))


def dump_config(config: RunConfig) -> str:
    """Write a configuration as JSON text, grouped as in the schema; `load_config` is its inverse."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def load_config(path: str | Path) -> RunConfig:
    """Read a configuration file; what it does not name has its default.

    Raises:
        UserError: the file is missing, is not JSON, or holds an unknown name or a value of the wrong type.
    """
    return _build(merge_layers(read_config_file(Path(path))))


def read_config_file(path: Path) -> dict[str, Any]:
    """Read the values of a configuration file by field name, each checked against the schema.

    Raises:
        UserError: as `load_config`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"--config {path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f'--config {path}: expected an object of groups, as in {{"optimizer": {{"lr": 5e-7}}}}')
    values: dict[str, Any] = {}
    for group, entries in content.items():
        _check_known(path, "group", group, list(group_classes()))
        if not isinstance(entries, dict):
            raise UserError(f"--config {path}: {group} must be an object of settings")
        known = {info.name: info for info in group_fields(group)}
        for name, value in entries.items():
            _check_known(path, f"setting of {group}", name, list(known))
            values[name] = _check_value(path, known[name], value)
    return values


def merge_layers(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge values by field name, later layers winning.

    Settings that exclude each other (the three lengths of a training, the two warm-ups) replace each other across layers: a
    --num-epochs given as a flag unsets the train_iters of a file.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for group in EXCLUSIVE_GROUPS:
            if any(layer.get(name) is not None for name in group):
                merged.update(dict.fromkeys(group))
        merged.update(layer)
    return merged


def _build(values: Mapping[str, Any]) -> RunConfig:
    """Put values by field name into their groups."""
    grouped: dict[str, dict[str, Any]] = {group: {} for group in group_classes()}
    for name, value in _tuples(values).items():
        grouped[fields_by_name()[name].group][name] = value
    return RunConfig(**{group: cls(**grouped[group]) for group, cls in group_classes().items()})


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _add_flag(arguments: argparse._ArgumentGroup, info: FieldInfo) -> None:
    """Add one setting; its default is shown in the help but is not put into the namespace."""
    shown = " ".join(info.default) if info.many else info.default
    suffix = "" if info.default is None or "Default:" in info.doc or shown == "" else f" (default: {shown})"
    text = (info.doc + suffix).replace("%", "%%")
    if info.kind is bool:
        arguments.add_argument(info.flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        return
    options: dict[str, Any] = {"type": info.kind, "default": argparse.SUPPRESS, "help": text}
    if info.many:
        options["nargs"] = "+"
    if info.choices:
        options["choices"] = info.choices
    else:
        options["metavar"] = {int: "N", float: "X", str: "TEXT"}[info.kind]
    arguments.add_argument(info.flag, **options)


def _check_known(path: Path, what: str, name: str, known: list[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise UserError(f"--config {path}: unknown {what} {name!r}; {hint}")


def _check_value(path: Path, info: FieldInfo, value: Any) -> Any:
    """Return the value as the schema types it, or refuse it."""
    if value is None and info.optional:
        return None
    items = value if info.many and isinstance(value, list) else [value]
    if isinstance(value, list) == info.many and all(_has_kind(item, info.kind) for item in items):
        unknown = [item for item in items if info.choices and item not in info.choices]
        if unknown:
            raise UserError(f"--config {path}: {info.group}.{info.name} is {unknown[0]!r}; choose from {', '.join(info.choices)}")
        converted = [info.kind(item) for item in items]
        return converted if info.many else converted[0]
    expected = f"a list of {info.kind.__name__}" if info.many else info.kind.__name__
    raise UserError(f"--config {path}: {info.group}.{info.name} must be {expected}, got {json.dumps(value)}")


def _has_kind(value: object, kind: type) -> bool:
    """Tell whether a JSON value fits a type: an int fits float, a bool fits bool only."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, cast("tuple[type, ...]", (int, float)) if kind is float else kind)
