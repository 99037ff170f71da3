"""The public method, written plainly on Hugging Face transformers: two long policy passes and a live reference.

As in the paper's released trainer, chosen and rejected are two whole sequences in one batch, and a second model scores the
answers on their short contexts in every step. The head runs in chunks that the backward computes again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, logsigmoid
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.problem import POLICY_ROTARY_BASE, Problem, make_pair
from megatron_longpo.config.schema import ObjectiveConfig, OptimizerConfig, TrainingConfig
from megatron_longpo.data.pair import Side


def load_model(folder: Path, rotary_base: float | None = None) -> Any:
    """A model with PyTorch's scaled dot-product attention, fp32."""
    config = AutoConfig.from_pretrained(folder)
    if rotary_base is not None:
        config.rope_parameters = {**config.rope_parameters, "rope_theta": rotary_base}
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="sdpa")


def token_logps(model: Any, ids: Tensor, chunk: int) -> Tensor:
    """``[b, s] -> [b, s - 1]`` log-probs of every token after the first."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    labels = ids[:, 1:].flatten()

    def losses(states: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(linear(states, model.lm_head.weight), targets, reduction="none")

    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    return -torch.cat([checkpoint(losses, *part, use_reentrant=False) for part in parts]).view(ids.size(0), -1)


def both(sides: tuple[Side, Side]) -> tuple[Tensor, int]:
    """A batch of chosen and rejected, and how many of their last tokens are the answer."""
    start, end = sides[0].answer_spans[0]
    return torch.stack([torch.from_numpy(side.input_ids).long() for side in sides]), end - start


class TwoPassStep:
    """The method's step on one pair, ready to be called."""

    def __init__(self, problem: Problem, hf: Path) -> None:
        """Build, and take one short step, so that gradients and optimizer state stand."""
        objective, optimizer = ObjectiveConfig(), OptimizerConfig()
        self.beta, self.preference_weight = objective.beta, objective.preference_weight
        self.clip, self.chunk = optimizer.clip_grad, TrainingConfig().logit_chunk_size
        self.policy, self.reference = load_model(hf, POLICY_ROTARY_BASE), load_model(hf)
        self.policy.train()
        self.reference.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=0.0, weight_decay=0.0)
        self.pair = make_pair(problem.shortened())
        self()
        self.pair = make_pair(problem)

    def __call__(self) -> dict[str, float]:
        """Loss and gradient norm."""
        self.optimizer.zero_grad(set_to_none=False)  # as under gradient accumulation, and as ours: gradients stand
        short, answer = both((self.pair.short_chosen[0], self.pair.short_rejected[0]))
        with torch.no_grad():
            reference = token_logps(self.reference, short, self.chunk)[:, -answer:].sum(-1)
        ids, answer = both((self.pair.chosen, self.pair.rejected))
        logps = token_logps(self.policy, ids, self.chunk)
        ratio = logps[:, -answer:].sum(-1) - reference
        preference = -logsigmoid(self.beta * (ratio[0] - ratio[1]))
        loss = -logps[0].mean() + self.preference_weight * preference
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.clip)
        self.optimizer.step()
        return {"loss": loss.item(), "grad_norm": norm.item()}
