"""Native checkpoints that this Megatron-Core cannot read are refused in words."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from megatron_longpo.conversion.import_hf import hf_to_mcore
from megatron_longpo.conversion.workers import Workers
from megatron_longpo.training.checkpoint import check_save_directory, load_weights
from megatron_longpo.utils.errors import UserError
from tests.support.hf_models import make_hf_model


def test_a_checkpoint_of_a_newer_megatron_core_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_hf_model(tmp_path / "hf", "llama")
    hf_to_mcore(tmp_path / "hf", tmp_path / "native", Workers())
    (tmp_path / "native" / "release" / "common.pt").unlink()  # 0.19 writes none
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.16.1")
    with pytest.raises(UserError, match=r"written by Megatron-Core 0\.19, which this one \(0\.16\.1\) cannot read"):
        load_weights([], str(tmp_path / "native"))


def test_a_folder_with_checkpoints_is_saved_to_only_by_the_run_that_resumes_from_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    check_save_directory(str(folder), None)
    folder.mkdir()
    check_save_directory(str(folder), None)
    (folder / "latest_checkpointed_iteration.txt").write_text("3")
    check_save_directory(str(folder), str(tmp_path / "other" / ".." / "run"))
    for load in (None, str(tmp_path / "other")):
        with pytest.raises(UserError, match="holds checkpoints already"):
            check_save_directory(str(folder), load)
