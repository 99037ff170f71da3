"""vLLM in the process, where it is installed. Written to vLLM's documented offline API (0.10 and later); not run on a GPU yet."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_longpo.inference.engine import Completion, PromptTokenizer
from megatron_longpo.inference.sampling import Sampling
from megatron_longpo.utils.errors import UserError


class VllmEngine:
    """A model that vLLM runs here; see `Engine`."""

    concurrency = 1
    """Documents come in groups; vLLM itself runs their requests side by side."""

    def __init__(self, model: Any, tokenizer: PromptTokenizer, *, fingerprint: str, group_size: int = 8) -> None:
        """Wrap a ``vllm.LLM``."""
        self.model, self.tokenizer = model, tokenizer
        self.fingerprint, self.group_size = fingerprint, group_size

    @classmethod
    def load(
        cls, path: Path, tokenizer: PromptTokenizer, *, dtype: str, context_length: int, fingerprint: str, group_size: int = 8
    ) -> VllmEngine:
        """Load a Hugging Face folder.

        Raises:
            UserError: vLLM is not installed.
        """
        try:
            import vllm
        except ImportError:
            raise UserError(
                "--engine vllm: vLLM is not installed; pip install vllm, or give --server to use one elsewhere"
            ) from None
        model = vllm.LLM(model=str(path), dtype=dtype, max_model_len=context_length, enable_prefix_caching=True)
        return cls(model, tokenizer, fingerprint=fingerprint, group_size=group_size)

    def describe(self) -> dict[str, Any]:
        """Return the hashes of model and tokenizer; its RoPE settings are the folder's."""
        return {"engine": "vllm", "model_sha256": self.fingerprint, "tokenizer": self.tokenizer.fingerprint}

    def complete(
        self, messages: Sequence[str], sampling: Sampling, seeds: Sequence[int], done: Collection[int] = ()
    ) -> Iterator[dict[int, Completion]]:
        """Answer each message; see `Engine`. All answers of a call come together."""
        from vllm import SamplingParams

        missing = [place for place in range(len(messages)) if place not in done]
        if not missing:
            return
        prompts = [{"prompt_token_ids": self.tokenizer.encode_message(messages[place])} for place in missing]
        options = [
            SamplingParams(
                temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=sampling.max_new_tokens, seed=seeds[place]
            )
            for place in missing
        ]
        outputs = self.model.generate(prompts, options, use_tqdm=False)
        yield {place: _completion(output.outputs[0]) for place, output in zip(missing, outputs, strict=True)}

    def score(self, message: str, answer: str) -> float:
        """Sum the log-probs of an answer; see `Engine`."""
        from vllm import SamplingParams

        whole = self.tokenizer.render_message(message) + self.tokenizer.end_answer(answer)
        prompts = [{"prompt_token_ids": self.tokenizer.encode(whole)}]
        options = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        [output] = self.model.generate(prompts, options, use_tqdm=False)
        return _sum_logprobs(output, len(self.tokenizer.encode_message(message)))


def _completion(output: Any) -> Completion:
    return Completion(output.text.strip(), "length" if output.finish_reason == "length" else "stop", len(output.token_ids))


def _sum_logprobs(output: Any, start: int) -> float:
    """Sum over the prompt's tokens from ``start`` on; vLLM gives a mapping from token to log-prob for each place."""
    places = zip(output.prompt_token_ids[start:], output.prompt_logprobs[start:], strict=True)
    return float(sum(found[token].logprob for token, found in places))
