from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longpo.inference.engine import Completion, PromptTokenizer
from megatron_longpo.inference.sampling import Sampling
from megatron_longpo.inference.transformers_engine import TransformersEngine, sample_tokens
from tests.support.hf_models import make_hf_model

DOCUMENT = "The quick brown fox jumps over the lazy dog. " * 6
MESSAGES = [DOCUMENT + "\n\nWho?", DOCUMENT + "\n\nWhere did it all begin, and why?", "Something else", DOCUMENT[:90]]
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)
WARM = Sampling(temperature=1.0, top_p=0.9, max_new_tokens=12)


def complete(
    engine: TransformersEngine, messages: Sequence[str], sampling: Sampling, seeds: Sequence[int], done: Collection[int] = ()
) -> list[Completion]:
    """All answers in order."""
    found: dict[int, Completion] = {}
    for group in engine.complete(messages, sampling, seeds, done):
        found |= group
    return [found[place] for place in sorted(found)]


def load(folder: Path, max_batch_tokens: int = 100_000) -> TransformersEngine:
    tokenizer = PromptTokenizer.load(folder)
    cpu = torch.device("cpu")
    return TransformersEngine.load(folder, tokenizer, dtype="float32", device=cpu, max_batch_tokens=max_batch_tokens)


def generate_alone(engine: TransformersEngine, message: str) -> str:
    """Generate with the library's own loop: one prompt, no shared start."""
    ids = torch.tensor([engine.tokenizer.encode_message(message)])
    output = engine.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
    return engine.tokenizer.decode(output[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_batches_and_shared_starts_change_nothing(tmp_path: Path, family: str) -> None:
    engine = load(make_hf_model(tmp_path, family))
    expected = [generate_alone(engine, message) for message in MESSAGES]
    assert [answer.text for answer in complete(engine, MESSAGES, GREEDY, [0] * 4)] == expected
    engine.max_batch_tokens = 1  # every message a batch of its own, after the shared start was cut back
    assert [answer.text for answer in complete(engine, MESSAGES[:2], GREEDY, [0] * 2)] == expected[:2]
    assert len(set(expected)) > 2


def test_batches_stay_within_the_limit_and_keep_order(random_model: Path) -> None:
    engine = load(random_model, max_batch_tokens=100)
    prompts = [[0] * length for length in (20, 20, 60, 200, 10, 10, 10)]
    batches = list(engine._batches(prompts, Sampling(temperature=0.0, max_new_tokens=10)))
    assert batches == [[0, 1], [2], [3], [4, 5, 6]]


def test_an_answer_depends_on_its_own_seed_and_on_no_other_row(random_model: Path) -> None:
    engine = load(random_model)
    together = complete(engine, MESSAGES, WARM, [1, 2, 3, 4])
    assert [
        complete(engine, [message], WARM, [seed])[0] for message, seed in zip(MESSAGES, [1, 2, 3, 4], strict=True)
    ] == together
    assert complete(engine, MESSAGES[:1], WARM, [2])[0] != together[0]


def test_finish_reason_tells_who_ended_the_answer(chain_model: Path) -> None:
    engine = load(chain_model)
    [whole] = complete(engine, ["Ask."], GREEDY, [0])
    assert (whole.text, whole.finish_reason, whole.num_tokens) == ("1. Which thing is told here?", "stop", 5)
    [cut] = complete(engine, ["Ask."], Sampling(temperature=0.0, max_new_tokens=2), [0])
    assert (cut.text, cut.finish_reason, cut.num_tokens) == ("1. Which thing is told", "length", 2)


def test_a_prompt_has_no_second_start_token(random_model: Path) -> None:
    tokenizer = PromptTokenizer.load(random_model)
    ids = tokenizer.encode_message("Hello")
    rendered = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert ids == tokenizer.encode(rendered)
    assert ids.count(tokenizer.tokenizer.bos_token_id) == 2


def test_a_raised_rotary_base_is_the_model_with_that_base(random_model: Path, tmp_path: Path) -> None:
    engine = load(random_model)
    raised = engine.with_rotary_base(1e7)
    other = load(make_hf_model(tmp_path, "llama", rope_theta=1e7))
    before = complete(engine, MESSAGES, GREEDY, [0] * 4)
    assert complete(raised, MESSAGES, GREEDY, [0] * 4) == complete(other, MESSAGES, GREEDY, [0] * 4)
    assert complete(engine, MESSAGES, GREEDY, [0] * 4) == before
    assert complete(raised, MESSAGES, GREEDY, [0] * 4) != before
    assert (raised.describe()["rope"]["rope_theta"], engine.describe()["rope"]["rope_theta"]) == (1e7, 1e4)


def test_sampling_follows_temperature_and_nucleus() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -4.0]])
    probabilities = torch.softmax(logits[0].double() / 0.5, dim=-1)
    generator = torch.Generator().manual_seed(0)
    draws = [sample_tokens(logits, Sampling(temperature=0.5), [generator])[0] for _ in range(4000)]
    observed = torch.bincount(torch.tensor(draws), minlength=4) / len(draws)
    assert torch.allclose(observed.double(), probabilities, atol=0.03)
    top = Sampling(temperature=0.5, top_p=float(probabilities[:2].sum()))
    assert {sample_tokens(logits, top, [generator])[0] for _ in range(500)} == {0, 1}
    assert sample_tokens(logits, Sampling(temperature=0.0), [generator]) == [0]


def test_answers_and_their_batches_do_not_depend_on_which_are_known_already(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []
    complete_batch = TransformersEngine._complete_batch

    def record(self: Any, cache: Any, shared: int, tails: Any, sampling: Sampling, seeds: list[int]) -> list[Completion]:
        batches.append(seeds)
        return complete_batch(self, cache, shared, tails, sampling, seeds)

    monkeypatch.setattr(TransformersEngine, "_complete_batch", record)
    engine = load(random_model, max_batch_tokens=900)
    seeds = [1, 2, 3, 4]
    whole = complete(engine, MESSAGES, WARM, seeds)
    expected = list(batches)
    assert 1 < len(expected) < 4
    for done in ({0}, {1, 2}, {0, 3}, {0, 1, 2}):
        found: dict[int, Completion] = {}
        batches.clear()
        for group in engine.complete(MESSAGES, WARM, seeds, done):
            found |= group
        assert batches == [batch for batch in expected if not {seed - 1 for seed in batch} <= done]
        assert found.keys() | done == {0, 1, 2, 3}
        assert all(answer == whole[place] for place, answer in found.items())
    assert list(engine.complete(MESSAGES, WARM, seeds, {0, 1, 2, 3})) == []
