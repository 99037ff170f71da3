"""Whether a run's memory options fit its model and its machine: what Megatron-Core would tell late, or in its own words."""

from __future__ import annotations

from megatron_longpo.config.schema import RunConfig
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.models.transformer_config import virtual_pipeline_size
from megatron_longpo.parallel import cpu_backend
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.optional import has_transformer_engine

OFFLOAD_LAYERS = "--cpu-offloading-num-layers"


def check_recompute(config: RunConfig, architecture: ModelArchitecture) -> None:
    """Refuse units of recomputation that do not divide the layers they are made of.

    Raises:
        UserError: in a layout that has passed `check_layout`.
    """
    training, unit = config.training, config.training.recompute_num_layers
    if training.recompute_granularity != "full":
        return
    chunks = virtual_pipeline_size(architecture, config.parallel) or 1
    layers = architecture.num_layers // (config.parallel.pipeline_model_parallel_size * chunks)
    if unit > layers or (training.recompute_method == "uniform" and layers % unit):
        limit = "divide" if training.recompute_method == "uniform" else "be at most"
        raise UserError(f"--recompute-num-layers {unit} must {limit} the {layers} layers of a pipeline stage (or model chunk)")


def check_offload(config: RunConfig, num_layers: int) -> None:
    """Refuse to move states or activations to the host where nothing can.

    Raises:
        UserError: without a GPU, or without Transformer Engine, which both need; or for the activations of every layer.
    """
    layers = config.training.cpu_offloading_num_layers
    for flag, wanted in (("--optimizer-cpu-offload", config.optimizer.optimizer_cpu_offload), (OFFLOAD_LAYERS, layers > 0)):
        if wanted and not cpu_backend.has_cuda():
            raise UserError(f"{flag} moves memory from a GPU to the host, and this machine has no GPU; leave it out")
        if wanted and not has_transformer_engine():
            raise UserError(f"{flag} needs Transformer Engine: install the extra 'gpu', or leave it out")
    if layers >= num_layers:
        raise UserError(f"{OFFLOAD_LAYERS} {layers} must leave a layer on the GPU; the model has {num_layers}")
