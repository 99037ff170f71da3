"""Proof of a conversion: the same text through Hugging Face's model and through ours."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_longpo.config.schema import ParallelConfig, TrainingConfig
from megatron_longpo.conversion.hf_folder import CONFIG, open_hf_folder
from megatron_longpo.conversion.record import find_iteration, whole_model
from megatron_longpo.conversion.safe_metadata import check_metadata
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.models.gpt import LogProbGPTModel, build_model
from megatron_longpo.parallel import cpu_backend, state
from megatron_longpo.parallel.packed_sequence import Chain, PackedInput
from megatron_longpo.utils.errors import UserError

DEFAULT_TEXT = """\
The harbour master kept two ledgers. In the first she wrote the name of every ship, its tonnage and the hour at which it
passed the light; in the second, which nobody else read, she wrote what the gulls had been doing at that hour. After thirty-one
years the ledgers filled a room, and a clerk from the ministry came to ask which of them should be kept. "Read me any page of
the first," she said, "and I will tell you what stands on the same page of the second." He opened a volume at random: the
Aurora, 412 tons, a quarter past six. She looked out of the window for a while. "Fog," she said. "No gulls at all."

def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

1, 1, 2, 3, 5, 8, 13, 21, 34, 55. Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 春眠不覚暁
"""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How two models differ on one text.

    Attributes:
        tokens: positions compared.
        max_logit_difference: largest absolute difference of a logit.
        mean_logit_difference: mean absolute difference of the logits.
        kl: mean over positions of KL(Hugging Face || ours), in nats.
        greedy_agreement: share of positions at which both find the same token most likely.
        max_log_prob_difference: largest absolute difference of a next token's log-prob; ours comes from the training forward.
    """

    tokens: int
    max_logit_difference: float
    mean_logit_difference: float
    kl: float
    greedy_agreement: float
    max_log_prob_difference: float


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """What still counts as agreement between two fp32 computations that sum in different orders."""

    max_logit_difference: float = 1e-2
    kl: float = 1e-6
    greedy_agreement: float = 0.99

    def violations(self, found: Agreement) -> list[str]:
        """What exceeds the tolerances, in words; empty if nothing does. A difference that is not a number exceeds them."""
        upper = {
            "max_logit_difference": (found.max_logit_difference, self.max_logit_difference),
            "max_log_prob_difference": (found.max_log_prob_difference, self.max_logit_difference),
            "kl": (found.kl, self.kl),
        }
        wrong = [f"{name} {value:.3g} is above {limit:g}" for name, (value, limit) in upper.items() if not value <= limit]
        if not found.greedy_agreement >= self.greedy_agreement:
            wrong.append(f"greedy_agreement {found.greedy_agreement:.3g} is below {self.greedy_agreement:g}")
        return wrong


def verify_conversion(hf: Path, checkpoint: Path, text: str = DEFAULT_TEXT, max_tokens: int = 512) -> Agreement:
    """Run a text through both models in fp32, one after the other, on this process's device.

    Args:
        hf: Hugging Face folder, with a tokenizer.
        checkpoint: native checkpoint directory or the folder of one iteration.
        text: what they read.
        max_tokens: the text is cut to this many tokens.

    Raises:
        UserError: if the two do not describe the same architecture, or the text is empty.

    Parallel: joins a process group of one for our model, and leaves it.
    """
    folder = find_iteration(checkpoint)
    architecture = whole_model(folder).architecture
    _check_architectures(hf, architecture, folder)
    tokens = _encode(hf, text, max_tokens)
    theirs = hf_logits(hf, tokens)
    gc.collect()
    ours, log_probs = native_logits(folder, architecture, tokens)
    return compare(theirs, ours, log_probs, tokens)


def compare(theirs: Tensor, ours: Tensor, log_probs: Tensor, tokens: Tensor) -> Agreement:
    """Compare logits ``[s, v]`` of two models, and our log-probs ``[s - 1]`` of the next tokens, on ``tokens`` ``[s]``."""
    difference = (theirs - ours).abs()
    their_log_probs, our_log_probs = theirs.double().log_softmax(-1), ours.double().log_softmax(-1)
    kl = (their_log_probs.exp() * (their_log_probs - our_log_probs)).sum(-1)
    next_log_probs = their_log_probs[:-1].gather(-1, tokens[1:, None])[:, 0]
    return Agreement(
        tokens=len(tokens),
        max_logit_difference=difference.max().item(),
        mean_logit_difference=difference.mean().item(),
        kl=kl.mean().item(),
        greedy_agreement=(theirs.argmax(-1) == ours.argmax(-1)).double().mean().item(),
        max_log_prob_difference=(next_log_probs - log_probs.double()).abs().max().item(),
    )


@torch.inference_mode()
def hf_logits(folder: Path, tokens: Tensor) -> Tensor:
    """Logits ``[s, v]`` (fp32, on the CPU) of Hugging Face's model on tokens ``[s]``."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    model.to(cpu_backend.device()).eval()
    return model(tokens[None].to(cpu_backend.device())).logits[0].float().cpu()


@torch.inference_mode()
def native_logits(folder: Path, architecture: ModelArchitecture, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[s, v]`` and next-token log-probs ``[s - 1]`` (fp32, on the CPU) of our model on tokens ``[s]``."""
    parallel = ParallelConfig()
    groups = state.initialize(parallel)
    try:
        (model,) = build_model(architecture, parallel, TrainingConfig(), groups)
        _load(model, folder)
        model.eval()
        packed = _pack(tokens.to(cpu_backend.device()))
        hidden = model.embedding(input_ids=packed.tokens[None], position_ids=None)
        hidden = model.decoder(hidden_states=hidden, attention_mask=None, packed_seq_params=model.attention_of(packed))
        tied = model.share_embeddings_and_output_weights
        weight = model.shared_embedding_or_output_weight() if tied else model.output_layer.weight
        logits = hidden[:, 0] @ weight[: architecture.vocab_size].T
        return logits.float().cpu(), model(packed)[:-1].float().cpu()
    finally:
        state.destroy()


def _load(model: LogProbGPTModel, folder: Path) -> None:
    from megatron.core import dist_checkpointing

    check_metadata(folder)
    model.load_state_dict(dist_checkpointing.load({"model": model.sharded_state_dict()}, str(folder))["model"])


def _pack(tokens: Tensor) -> PackedInput:
    length = len(tokens)
    labels = torch.cat([tokens[1:], tokens.new_full((1,), -100)])
    return PackedInput(tokens, labels, torch.arange(length, device=tokens.device), (Chain(0, length),), length)


def _check_architectures(hf: Path, architecture: ModelArchitecture, folder: Path) -> None:
    theirs, ours = open_hf_folder(hf).architecture.to_dict(), architecture.to_dict()
    different = [f"{name} {theirs[name]} there, {ours[name]} here" for name in ours if theirs[name] != ours[name]]
    if different:
        raise UserError(f"{hf / CONFIG} and {folder} are different models: {'; '.join(different)}")


def _encode(hf: Path, text: str, max_tokens: int) -> Tensor:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(hf)
    except (OSError, ValueError) as error:
        raise UserError(f"{hf}: no tokenizer could be loaded: {str(error).splitlines()[0]}") from None
    ids = tokenizer(text)["input_ids"][:max_tokens]
    if len(ids) < 2:
        raise UserError("the text is too short: two tokens are the least that can be compared")
    return torch.tensor(ids)
