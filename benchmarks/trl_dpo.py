"""TRL's DPOTrainer in the fastest settings that it has on a CPU.

The reference's log-probs are precomputed, layers are not recomputed, fp32. Its head always runs in chunks without whole logits.
Padding-free batches are switched off in TRL itself, and Liger's kernels need Triton.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from benchmarks.problem import POLICY_ROTARY_BASE, Problem, make_pair
from benchmarks.two_pass import load_model
from megatron_longpo.config.schema import ObjectiveConfig, OptimizerConfig
from megatron_longpo.data.pair import PreferencePair


def _example(pair: PreferencePair) -> dict[str, list[int]]:
    (start, end), (_, other_end) = pair.chosen.answer_spans[0], pair.rejected.answer_spans[0]
    chosen, rejected = pair.chosen.input_ids.tolist(), pair.rejected.input_ids.tolist()
    return {"prompt_ids": chosen[:start], "chosen_ids": chosen[start:end], "rejected_ids": rejected[start:other_end]}


def _tokenizer() -> PreTrainedTokenizerFast:
    """For the one word of the dataset that the trainer asks for: the pairs are token ids already."""
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="a", eos_token="a")


class TrlStep:
    """The trainer's step on one pair, ready to be called."""

    def __init__(self, problem: Problem, hf: Path) -> None:
        """Build; the reference's log-probs are computed here. One short step makes gradients and optimizer state stand."""
        with tempfile.TemporaryDirectory() as folder:
            settings = DPOConfig(
                output_dir=folder,
                beta=ObjectiveConfig().beta,
                precompute_ref_log_probs=True,
                gradient_checkpointing=False,
                max_length=None,
                use_cpu=True,
                bf16=False,
                per_device_train_batch_size=1,
                dataloader_pin_memory=False,
                report_to=[],
                save_strategy="no",
            )
            self.trainer = DPOTrainer(
                model=load_model(hf, POLICY_ROTARY_BASE),
                args=settings,
                train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "a", "rejected": "a"}]),
                processing_class=_tokenizer(),
            )
        self.clip = OptimizerConfig().clip_grad
        self.model = self.trainer.model
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, weight_decay=0.0)
        self.examples = [self._with_reference(make_pair(problem.shortened()))]
        self()
        self.examples = [self._with_reference(make_pair(problem))]

    def _with_reference(self, pair: PreferencePair) -> dict[str, Any]:
        """What the trainer's own precomputing makes of a pair: with log-probs of the model as it is before training."""
        example = _example(pair)
        chosen, rejected = self.trainer.compute_ref_log_probs(self.model, self.trainer.data_collator([example]))
        return {**example, "ref_chosen_logps": chosen.item(), "ref_rejected_logps": rejected.item()}

    def __call__(self) -> dict[str, float]:
        """Loss and gradient norm."""
        self.optimizer.zero_grad(set_to_none=False)
        batch = self.trainer.data_collator(self.examples)
        loss = self.trainer.compute_loss(self.model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return {"loss": loss.item(), "grad_norm": norm.item()}
