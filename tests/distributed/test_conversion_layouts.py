"""A checkpoint converted once loads in every layout, and one that any layout saved exports to the same bytes."""

from pathlib import Path

import pytest

from megatron_longpo.conversion.export_hf import mcore_to_hf
from megatron_longpo.conversion.import_hf import hf_to_mcore
from tests.support.hf_models import make_hf_model
from tests.support.layouts import Layout, dump
from tests.support.weights import read_weights, same_bytes


def load_and_save(layout: Layout, source: Path, target: Path) -> None:
    """Load a checkpoint into this layout's part of the model, and let Megatron-Core save it again (on every rank)."""
    from megatron.core import dist_checkpointing

    from megatron_longpo.config.schema import TrainingConfig
    from megatron_longpo.conversion.record import ModelRecord, find_iteration
    from megatron_longpo.conversion.safe_metadata import check_metadata
    from megatron_longpo.models.gpt import build_model
    from megatron_longpo.models.transformer_config import virtual_pipeline_size
    from megatron_longpo.parallel import state
    from megatron_longpo.training.checkpoint import model_state

    folder = find_iteration(source)
    check_metadata(folder)
    architecture, parallel = ModelRecord.read(folder).architecture, layout.parallel()
    groups = state.initialize(parallel, 1, virtual_pipeline_size(architecture, parallel))
    try:
        chunks = build_model(architecture, parallel, TrainingConfig(), groups)
        loaded, missing, unexpected = dist_checkpointing.load(model_state(chunks), str(folder), strict="return_all")
        assert (missing, unexpected) == (set(), set())
        for chunk, values in zip(chunks, (loaded[name] for name in model_state(chunks)), strict=True):
            chunk.load_state_dict(values)
        dump(chunks, target, gradients=False)
    finally:
        state.destroy()


@pytest.mark.parametrize(
    ("family", "overrides", "layout"),
    [
        ("qwen2", {"vocab_size": 321}, Layout(tp=2, sp=True)),  # the vocabulary is padded to 322 in memory and on disk
        ("smollm2", {}, Layout(pp=2)),  # tied embeddings on two stages
        ("llama", {}, Layout(pp=2, vpp_layers=1)),
        ("qwen3", {}, Layout(tp=2, pp=2)),
    ],
    ids=str,
)
def test_weights_survive_loading_and_saving_in_another_layout(tmp_path, workers, family, overrides, layout):
    source, native, again = make_hf_model(tmp_path / "hf", family, **overrides), tmp_path / "native", tmp_path / "again"
    hf_to_mcore(source, native)
    workers.run(layout.world_size, load_and_save, layout, native, again / "release")
    (again / "release" / "longpo_model.json").write_bytes((native / "release" / "longpo_model.json").read_bytes())
    mcore_to_hf(again / "release", tmp_path / "back")
    assert same_bytes(read_weights(source), read_weights(tmp_path / "back"))
