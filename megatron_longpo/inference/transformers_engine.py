"""An engine in the process: `transformers` on this machine's device, with batches and a shared start that is read once."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_longpo.inference.engine import Completion, PromptTokenizer
from megatron_longpo.inference.sampling import Sampling
from megatron_longpo.utils.errors import UserError

FINGERPRINTED = (".safetensors", ".json", ".jinja", ".model")
"""Files of a Hugging Face folder that decide what the model answers."""


class TransformersEngine:
    """A causal language model of `transformers`, decoder-only with rotary positions."""

    concurrency = 1

    def __init__(
        self, model: Any, tokenizer: PromptTokenizer, *, fingerprint: str, max_batch_tokens: int = 16384, group_size: int = 8
    ) -> None:
        """Wrap a model.

        Args:
            model: the model, in evaluation mode.
            tokenizer: its tokenizer.
            fingerprint: hash of the folder that the model came from.
            max_batch_tokens: cache positions that are decoded together, at most (one message is always answered).
            group_size: documents whose short messages share batches.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.max_batch_tokens = max_batch_tokens
        self.group_size = group_size
        try:
            self.rotary = model.model.rotary_emb
        except AttributeError:
            raise UserError(f"{type(model).__name__}: no decoder with rotary positions; serve it, and give --server") from None
        self.stop_ids = _stop_ids(model, tokenizer)

    @classmethod
    def load(
        cls, path: Path, tokenizer: PromptTokenizer, *, dtype: str, device: torch.device, **limits: int
    ) -> TransformersEngine:
        """Read a model from a Hugging Face folder; ``limits`` are those of the constructor.

        Raises:
            UserError: there is none that can be read from safetensors.
        """
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()  # the command has a bar of its own
        try:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: no model could be read ({str(error).splitlines()[0]}); give a Hugging Face folder"
            ) from None
        model = model.to(device).eval()
        return cls(model, tokenizer, fingerprint=fingerprint_folder(path), **limits)

    @property
    def context_length(self) -> int:
        """Most positions that the model's configuration announces."""
        return int(self.model.config.max_position_embeddings)

    def with_rotary_base(self, base: float) -> TransformersEngine:
        """Return an engine that shares the weights and computes its positions with another RoPE base."""
        config = copy.deepcopy(self.rotary.config)
        config.rope_parameters["rope_theta"] = base
        engine = copy.copy(self)
        engine.rotary = type(self.rotary)(config).to(self.model.device)
        return engine

    def describe(self) -> dict[str, Any]:
        """Return the model's hash, precision and RoPE settings."""
        return {
            "engine": "transformers",
            "model_sha256": self.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "rope": dict(self.rotary.config.rope_parameters),
        }

    @torch.inference_mode()
    def complete(
        self, messages: Sequence[str], sampling: Sampling, seeds: Sequence[int], done: Collection[int] = ()
    ) -> Iterator[dict[int, Completion]]:
        """Answer each message; see `Engine`. The tokens that all messages start with go through the model once.

        Batches are made of all messages, and one is run unless all of its answers are known: rounding depends on a row's
        company, so that must not depend on what an earlier run has done.
        """
        from transformers import DynamicCache

        if len(done) == len(messages):
            return
        prompts = [self.tokenizer.encode_message(message) for message in messages]
        shared = _common_prefix_length(prompts)
        if not shared and len(prompts) > 1:
            # A padded row would have nothing to attend to: such prompts (a template that opens with the text) go one by one.
            for row in range(len(prompts)):
                if row not in done:
                    yield {row: next(self.complete([messages[row]], sampling, [seeds[row]]))[0]}
            return
        # No configuration: a sliding-window cache layer could not be cut back to the shared start.
        cache = DynamicCache()
        if shared:
            prefix = torch.tensor([prompts[0][:shared]], device=self.model.device)
            self._next_logits(input_ids=prefix, past_key_values=cache)
        for batch in self._batches(prompts, sampling):
            if not all(row in done for row in batch):
                tails = [prompts[row][shared:] for row in batch]
                answers = self._complete_batch(cache, shared, tails, sampling, [seeds[row] for row in batch])
                yield dict(zip(batch, answers, strict=True))

    @torch.inference_mode()
    def score(self, message: str, answer: str) -> float:
        """Sum the log-probs of an answer; see `Engine`."""
        prompt = self.tokenizer.encode_message(message)
        ids = self.tokenizer.encode(self.tokenizer.render_message(message) + self.tokenizer.end_answer(answer))
        start = _common_prefix_length([[*prompt, -1], ids])
        logits = self._logits(input_ids=torch.tensor([ids], device=self.model.device), logits_to_keep=len(ids) - start + 1)
        logps = torch.log_softmax(logits[0, :-1].double(), dim=-1)
        return float(logps.gather(-1, torch.tensor(ids[start:])[:, None]).sum())

    def _batches(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[list[int]]:
        """Group prompts, in order, so that rows times the longest row's positions stay within the limit."""
        batch: list[int] = []
        for row in range(len(prompts)):
            longest = max(len(prompts[other]) for other in [*batch, row]) + sampling.max_new_tokens
            if batch and longest * (len(batch) + 1) > self.max_batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        yield batch

    def _complete_batch(
        self, cache: Any, shared: int, tails: list[list[int]], sampling: Sampling, seeds: list[int]
    ) -> list[Completion]:
        """Answer prompts that start with the ``shared`` positions in ``cache`` and go on with ``tails``.

        Shorter tails are padded on the left, between the shared start and themselves; padding is masked and takes no position.
        The cache is given back as it came.
        """
        if len(tails) > 1:
            cache.batch_repeat_interleave(len(tails))
        device = self.model.device
        width = max(map(len, tails))
        padding = torch.tensor([width - len(tail) for tail in tails], device=device)
        tokens = torch.tensor([[self.stop_ids[0]] * (width - len(tail)) + tail for tail in tails], device=device)
        columns = torch.arange(width, device=device)
        real = columns >= padding[:, None]  # [b, width]
        mask = torch.cat([real.new_ones(len(tails), shared), real], dim=1).long()
        positions = (shared + columns - padding[:, None]).clamp_min(0)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        answers: list[list[int]] = [[] for _ in tails]
        for _ in range(sampling.max_new_tokens):
            logits = self._next_logits(input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache)
            chosen = sample_tokens(logits, sampling, generators)
            for answer, token in zip(answers, chosen, strict=True):
                if not self._has_ended(answer):
                    answer.append(token)
            if all(self._has_ended(answer) for answer in answers):
                break
            tokens = torch.tensor(chosen, device=device)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(tails), 1)], dim=1)
            positions = positions[:, -1:] + 1
        cache.crop(-(cache.get_seq_length() - shared))
        if len(tails) > 1:
            cache.batch_select_indices(torch.tensor([0], device=device))
        return [self._completion(answer) for answer in answers]

    def _next_logits(self, **inputs: Any) -> torch.Tensor:
        """Run the model over new tokens, adding them to the cache, and return the logits after the last: float32 ``[b, v]``."""
        return self._logits(**inputs, use_cache=True, logits_to_keep=1)[:, -1]

    def _logits(self, **inputs: Any) -> torch.Tensor:
        self.model.model.rotary_emb = self.rotary  # engines of other bases share the model
        return self.model(**inputs).logits.float().cpu()

    def _has_ended(self, answer: list[int]) -> bool:
        return bool(answer) and answer[-1] in self.stop_ids

    def _completion(self, answer: list[int]) -> Completion:
        reason: Literal["stop", "length"] = "stop" if self._has_ended(answer) else "length"
        return Completion(self.tokenizer.decode(answer), reason, len(answer))


def sample_tokens(logits: torch.Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """Draw the next token of each row.

    Each row takes one uniform number a token from its own generator and inverts the cumulative distribution, so that what it
    draws depends on no other row.

    Args:
        logits: float32 ``[b, v]`` on the CPU.
        sampling: temperature and nucleus.
        generators: one a row.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1).tolist()
    scaled = logits.double() / sampling.temperature
    probabilities, order = torch.softmax(scaled, dim=-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.cumsum(dim=-1)
    # The nucleus ends with the token that reaches top_p; its mass is what the uniform number is stretched over.
    last = (cumulative < sampling.top_p - 1e-12).sum(dim=-1, keepdim=True).clamp_max(logits.shape[-1] - 1)
    mass = cumulative.gather(-1, last)
    uniform = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    drawn = torch.searchsorted(cumulative, uniform * mass, right=True).minimum(last)
    return order.gather(-1, drawn).squeeze(-1).tolist()


def fingerprint_folder(path: Path) -> str:
    """Hash the files of a Hugging Face folder that decide what the model answers."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in FINGERPRINTED:
            with file.open("rb") as stream:
                digest.update(f"{file.name}\n{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _common_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """Count the tokens that all prompts start with, leaving each at least its last one (its logits are needed)."""
    limit = min(map(len, prompts)) - 1
    columns = itertools.islice(zip(*prompts, strict=False), limit)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def _stop_ids(model: Any, tokenizer: PromptTokenizer) -> list[int]:
    """Collect the tokens that end an answer, from the tokenizer and from the model's generation configuration."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    several = configured if isinstance(configured, list) else [configured]
    found = [token for token in (tokenizer.tokenizer.eos_token_id, *several) if token is not None]
    if not found:
        raise UserError(
            "the model names no end-of-turn token (eos_token_id), so no answer could end; set it in generation_config.json"
        )
    return list(dict.fromkeys(found))
