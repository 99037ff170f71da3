import dataclasses

import pytest

from benchmarks.flops import Work, layer_parameters, our_flops, packed, sequence, step_flops, two_pass_flops
from benchmarks.problem import ModelShape, Problem, make_pair
from megatron_longpo.data.packing import PackingOptions, PackItem, pack_pairs
from megatron_longpo.models.attention_plan import build_plan
from megatron_longpo.parallel.context_parallel import Run

PROBLEM = Problem(prompt=40, answer=7, short=11, model=ModelShape(hidden=64, ffn=96, layers=3, heads=4, kv_heads=2, vocab=50))


def test_the_work_of_a_packed_pair_is_what_packing_and_the_planner_make_of_it() -> None:
    batch = pack_pairs([PackItem(make_pair(PROBLEM))], PackingOptions())
    whole = (Run(0, batch.length, 0),)
    pairs = build_plan(batch.chains, whole, whole).score_pairs()
    work = packed(PROBLEM)
    assert work.rows == batch.length
    assert work.pairs == pairs - PROBLEM.prompt  # the formula leaves out the keys that the copied token sees


def test_the_parameters_of_the_layers_are_the_model_s() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = PROBLEM.model
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        )
    )  # fmt: skip
    assert layer_parameters(shape) == sum(weight.numel() for weight in model.model.layers.parameters() if weight.dim() == 2)


def test_a_step_is_three_forwards_of_products_and_three_and_a_half_of_attention() -> None:
    shape = PROBLEM.model
    assert step_flops(shape, Work(1, 0, 0)) == 3 * 2 * layer_parameters(shape)
    assert step_flops(shape, Work(0, 1, 0)) == 3 * 2 * shape.hidden * shape.vocab
    assert step_flops(shape, Work(0, 0, 1)) == 3.5 * 4 * shape.layers * shape.hidden
    assert sequence(4) == Work(4, 4, 10)


def test_at_great_length_the_packed_step_costs_half() -> None:
    long = dataclasses.replace(PROBLEM, prompt=1_000_000)
    assert our_flops(long) / two_pass_flops(long) == pytest.approx(0.5, abs=1e-4)
