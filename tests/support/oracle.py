"""The objective written down once more, from the formulas alone: float64, Hugging Face models, two whole sequences a pair.

Shares no code with the product but the pairs that it is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_longpo.data.pair import PreferencePair, Side


def load_hf(folder: Path, rotary_base: float | None = None) -> Any:
    """A Hugging Face model in float64, with another RoPE base if one is given."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    if rotary_base is not None:
        config.rope_parameters = {**config.rope_parameters, "rope_theta": rotary_base}
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float64, attn_implementation="eager").eval()


def token_logps(model: Any, ids: Any) -> torch.Tensor:
    """log p(ids[t] | ids[:t]) for t = 1 .. len - 1, float64 ``[s - 1]``."""
    tokens = torch.as_tensor(ids, dtype=torch.int64)
    logits = model(input_ids=tokens[None], use_cache=False).logits[0].double()
    return torch.log_softmax(logits[:-1], dim=-1).gather(1, tokens[1:, None]).squeeze(1)


def answer_logp(logps: torch.Tensor, span: tuple[int, int]) -> torch.Tensor:
    """Sum over an answer's tokens."""
    return logps[span[0] - 1 : span[1] - 1].sum()


def side_logps(model: Any, side: Side) -> torch.Tensor:
    """``[t]`` log-probs of a conversation's answers, each given everything before it."""
    logps = token_logps(model, side.input_ids)
    return torch.stack([answer_logp(logps, span) for span in side.answer_spans])


def pair_terms(policy: Any, reference: Any, pair: PreferencePair, beta: float, context: str = "short") -> dict[str, torch.Tensor]:
    """NLL, preference loss, rewards and log-probs of one document (paper Eq. 12-14, log-probs summed over turns)."""
    chosen_tokens = token_logps(policy, pair.chosen.input_ids)
    nll = -chosen_tokens.sum() / (len(pair.chosen.input_ids) - 1)
    policy_chosen = torch.stack([answer_logp(chosen_tokens, span) for span in pair.chosen.answer_spans])
    policy_rejected = side_logps(policy, pair.rejected)
    with torch.no_grad():
        if context == "short":
            reference_chosen = torch.stack([side_logps(reference, side)[0] for side in pair.short_chosen])
            reference_rejected = torch.stack([side_logps(reference, side)[0] for side in pair.short_rejected])
        else:
            reference_chosen, reference_rejected = side_logps(reference, pair.chosen), side_logps(reference, pair.rejected)
    chosen_reward = beta * (policy_chosen - reference_chosen)
    rejected_reward = beta * (policy_rejected - reference_rejected)
    margin = chosen_reward.sum() - rejected_reward.sum()
    return {
        "nll": nll,
        "preference": torch.log1p(torch.exp(-margin)),
        "per_turn": torch.log1p(torch.exp(-(chosen_reward - rejected_reward))).mean(),
        "rewards_chosen": chosen_reward.sum(),
        "rewards_rejected": rejected_reward.sum(),
        "logps_chosen": policy_chosen.sum(),
        "logps_rejected": policy_rejected.sum(),
        "drift": (reference_chosen - policy_chosen).sum(),
        "chosen_tokens": torch.tensor(float(sum(end - start for start, end in pair.chosen.answer_spans))),
    }


def batch_metrics(terms: list[dict[str, torch.Tensor]], nll_weight: float, preference_weight: float) -> dict[str, torch.Tensor]:
    """Metrics of a batch of documents, by the names that training reports."""
    mean = {name: torch.stack([term[name] for term in terms]).mean() for name in terms[0]}
    return {
        "loss": nll_weight * mean["nll"] + preference_weight * mean["preference"],
        "nll_loss": mean["nll"],
        "preference_loss": mean["preference"],
        "rewards/chosen": mean["rewards_chosen"],
        "rewards/rejected": mean["rewards_rejected"],
        "rewards/margins": mean["rewards_chosen"] - mean["rewards_rejected"],
        "rewards/accuracies": torch.stack([(t["rewards_chosen"] > t["rewards_rejected"]).double() for t in terms]).mean(),
        "logps/chosen": mean["logps_chosen"],
        "logps/rejected": mean["logps_rejected"],
        "kl/short_to_long": mean["drift"] / mean["chosen_tokens"],
    }
