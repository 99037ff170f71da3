"""The count of operations is PyTorch's own count of a whole decoder, forward and backward."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from megatron_longpo.models.flops import step_flops
from megatron_longpo.models.hf_config import architecture_from_hf
from tests.support.hf_models import COMMON, VARIANTS


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("length", [16, 256])
def test_a_step_has_the_operations_that_pytorch_counts(family: str, length: int) -> None:
    prefix, fields = VARIANTS[family]
    config = getattr(transformers, f"{prefix}Config")(**COMMON, **fields, attn_implementation="eager")
    model = getattr(transformers, f"{prefix}ForCausalLM")(config)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, length, dtype=torch.int64)).logits.sum().backward()
    flops = step_flops(architecture_from_hf(config.to_dict()))
    # eager attention computes the masked half as well, and keeps the scores that a flash kernel's backward computes again
    eager = flops.per_row * length + flops.per_score_pair * length**2 * 6 // 7
    assert counter.get_total_flops() == pytest.approx(eager, rel=1e-3)
    assert flops.step(10, 7) == 10 * flops.per_row + 7 * flops.per_score_pair
