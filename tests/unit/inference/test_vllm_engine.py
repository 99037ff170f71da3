"""What vLLM is asked, by a stand-in that checks the arguments of its documented offline API. Nothing here has run on a GPU."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.inference.engine import Completion, PromptTokenizer
from megatron_longpo.inference.sampling import Sampling
from megatron_longpo.inference.vllm_engine import VllmEngine


class SamplingParams:
    def __init__(
        self,
        *,
        temperature: float,
        max_tokens: int,
        top_p: float = 1.0,
        seed: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> None:
        self.temperature, self.top_p, self.max_tokens, self.seed = temperature, top_p, max_tokens, seed
        self.prompt_logprobs = prompt_logprobs


class LLM:
    """Answers with the number of prompt tokens; the log-prob of a prompt's token is minus its place."""

    def __init__(self, *, model: str, dtype: str, max_model_len: int, enable_prefix_caching: bool) -> None:
        self.options = (model, dtype, max_model_len, enable_prefix_caching)

    def generate(self, prompts: Sequence[dict[str, Any]], params: Any, *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        params = params if isinstance(params, list) else [params] * len(prompts)
        return [self._output(prompt["prompt_token_ids"], each) for prompt, each in zip(prompts, params, strict=True)]

    def _output(self, ids: list[int], params: SamplingParams) -> Any:
        answer = types.SimpleNamespace(
            text=f" {len(ids)} tokens, seed {params.seed} ", finish_reason="length" if params.max_tokens < 5 else "stop",
            token_ids=[1] * params.max_tokens,
        )  # fmt: skip
        logprobs = None
        if params.prompt_logprobs is not None:
            places = enumerate(ids)
            logprobs = [{token: types.SimpleNamespace(logprob=-float(place))} if place else None for place, token in places]
        return types.SimpleNamespace(outputs=[answer], prompt_token_ids=ids, prompt_logprobs=logprobs)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, random_model: Path) -> VllmEngine:
    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=LLM, SamplingParams=SamplingParams))
    tokenizer = PromptTokenizer.load(random_model)
    return VllmEngine.load(random_model, tokenizer, dtype="bfloat16", context_length=512, fingerprint="f", group_size=4)


def test_the_model_is_loaded_with_its_length_and_a_prefix_cache(engine: VllmEngine, random_model: Path) -> None:
    assert engine.model.options == (str(random_model), "bfloat16", 512, True)
    assert (engine.group_size, engine.describe()) == (
        4,
        {"engine": "vllm", "model_sha256": "f", "tokenizer": engine.tokenizer.fingerprint},
    )


def test_prompts_are_tokens_of_the_template_and_each_has_its_seed(engine: VllmEngine) -> None:
    messages = ["What?", "And then?", "Why?"]
    [found] = engine.complete(messages, Sampling(temperature=1.0, top_p=0.9, max_new_tokens=9), [4, 5, 6], done={1})
    lengths = [len(engine.tokenizer.encode_message(message)) for message in messages]
    assert found == {
        0: Completion(f"{lengths[0]} tokens, seed 4", "stop", 9),
        2: Completion(f"{lengths[2]} tokens, seed 6", "stop", 9),
    }
    [[cut]] = [list(group.values()) for group in engine.complete(["What?"], Sampling(temperature=0.0, max_new_tokens=2), [0])]
    assert cut.finish_reason == "length"
    assert list(engine.complete(messages, Sampling(temperature=0.0), [1, 2, 3], done={0, 1, 2})) == []


def test_a_score_is_the_sum_over_the_answers_tokens(engine: VllmEngine) -> None:
    start = len(engine.tokenizer.encode_message("What?"))
    length = len(engine.tokenizer.encode("That.<|im_end|>"))
    assert engine.score("What?", "That.") == -sum(range(start, start + length))
