"""An exported folder appears under its name only when it is whole, and says what it was exported from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from megatron_longpo.conversion.hf_folder import CONFIG
from megatron_longpo.conversion.record import ASSETS, ModelRecord, sync_folder
from megatron_longpo.conversion.workers import Workers, say
from megatron_longpo.models.hf_config import architecture_to_hf
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.files import write_text

EXPORT_RECORD = "longpo_export.json"


def origin_of(folder: Path, **settings: object) -> dict[str, object]:
    """What an export of an iteration's folder with ``settings`` is made from."""
    # A checkpoint's index is written last and names every stored byte, so its time and size tell one saved state from another
    index = (folder / ".metadata").stat()
    return {"checkpoint": str(folder.resolve()), "checkpoint_index": [index.st_size, index.st_mtime_ns], **settings}


def existing_export(target: Path, origin: dict[str, object], workers: Workers) -> str | None:
    """The fingerprint of what was exported to ``target`` before from the same origin; None if nothing is there.

    Raises:
        UserError: if something else is there.

    Parallel: all workers.
    """
    if not workers.first(target.exists() and (not target.is_dir() or any(target.iterdir()))):
        return None
    path = target / EXPORT_RECORD
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if {name: found.get(name) for name in origin} != origin:
        raise UserError(f"{target} exists and is not this export of {origin['checkpoint']}; remove it, or give another folder")
    say(f"{target} is up to date: it was exported from the same checkpoint", workers)
    return found["weights_sha256"]


def start_export(target: Path, workers: Workers) -> Path:
    """An empty folder to write to; what a killed export left in it is gone.

    Parallel: all workers.
    """
    partial = target.with_name(target.name + ".partial")
    if workers.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    workers.barrier()
    return partial


def finish_export(partial: Path, target: Path, origin: dict[str, object], fingerprint: str) -> None:
    """Give the folder, which holds everything else by now, its record and its name."""
    write_text(partial / EXPORT_RECORD, json.dumps({**origin, "weights_sha256": fingerprint}, indent=2) + "\n")
    sync_folder(partial)
    os.rename(partial, target)
    sync_folder(target.parent)


def write_assets(folder: Path, partial: Path, record: ModelRecord, dtype: str) -> None:
    """Copy tokenizer and templates, and write config.json with the architecture that was trained."""
    assets = folder.parent / ASSETS
    for file in sorted(assets.iterdir()) if assets.is_dir() else ():
        shutil.copyfile(file, partial / file.name)
    config = json.loads((assets / CONFIG).read_text(encoding="utf-8")) if (assets / CONFIG).exists() else None
    written = architecture_to_hf(record.architecture, dtype, config)
    write_text(partial / CONFIG, json.dumps(written, indent=2, sort_keys=True) + "\n")
