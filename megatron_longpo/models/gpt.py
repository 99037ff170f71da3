"""The model: Megatron-Core's GPTModel, read through packed sequences, answering with log-probs of targets."""

from __future__ import annotations

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from megatron_longpo.config.schema import ParallelConfig, TrainingConfig
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.models.attention import PackedAttention, PackedCoreAttention
from megatron_longpo.models.attention_plan import build_plan
from megatron_longpo.models.layer_spec import build_block_spec, core_attention
from megatron_longpo.models.linear_choices import linear_choices
from megatron_longpo.models.linear_cross_entropy import VocabShard, linear_log_probs
from megatron_longpo.models.linear_kl import linear_kl
from megatron_longpo.models.rotary import inverse_frequencies, rotary_tables
from megatron_longpo.models.transformer_config import build_transformer_config, virtual_pipeline_size
from megatron_longpo.parallel.context_exchange import ContextExchange
from megatron_longpo.parallel.packed_sequence import PackedInput
from megatron_longpo.parallel.state import ParallelState


class LogProbGPTModel(GPTModel):
    """GPTModel whose ``forward`` takes a `PackedInput` and whose last stage returns per-row log-probs.

    Parameters, checkpoint names and pipeline hand-over are GPTModel's own. Rotation happens in the core attention, by packed
    positions, so the model is built without position embeddings of its own.
    """

    def __init__(
        self,
        config: TransformerConfig,
        architecture: ModelArchitecture,
        padded_vocab_size: int,
        logit_chunk_size: int,
        exchange: ContextExchange,
        attention: type[PackedCoreAttention],
        *,
        pre_process: bool,
        post_process: bool,
        vp_stage: int | None,
        keep_attention: bool,
    ) -> None:
        """Build the modules of one pipeline stage (and model chunk)."""
        super().__init__(
            config,
            build_block_spec(config, attention, vp_stage),
            vocab_size=padded_vocab_size,
            max_sequence_length=architecture.max_position_embeddings,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=architecture.tie_word_embeddings,
            position_embedding_type="none",
            vp_stage=vp_stage,
        )
        self.architecture = architecture
        self.logit_chunk_size = logit_chunk_size
        self._exchange, self._keep_attention = exchange, keep_attention
        self.rotate_as(architecture)

    def rotate_as(self, architecture: ModelArchitecture) -> None:
        """From now on, rotate queries and keys with the RoPE settings of an architecture."""
        self._frequencies = inverse_frequencies(architecture.kv_channels, architecture.rotary_base, architecture.rope_scaling)

    def attention_of(self, packed: PackedInput) -> PackedAttention:
        """Plans of this rank's queries against the keys that it gets to see, and rotary tables of its rows."""
        exchange, length = self._exchange, packed.length
        queries = exchange.query_runs(length)
        plans = tuple(build_plan(packed.chains, queries, keys) for keys in exchange.key_runs(length))
        cos, sin = rotary_tables(packed.position_ids, self._frequencies)
        kept: dict[int, list[Tensor]] | None = {} if self._keep_attention and torch.is_grad_enabled() else None
        return PackedAttention(plans, exchange, packed.chains, cos, sin, kept)

    def forward(self, packed: PackedInput, *, states_alone: bool = False) -> Tensor:  # type: ignore[override]
        """Run this stage.

        Args:
            packed: this rank's part of a packed sequence.
            states_alone: leave out the head.

        Returns:
            On the last stage, log-prob of every row's label ``[s/cp]``, fp32, 0 where there is none; with a teacher
            ``[2, s/cp]``, these and the divergence from the teacher, 0 in rows that have none; with ``states_alone`` the last
            hidden states ``[s/cp, h]``. On other stages hidden states ``[s/cp (/tp), 1, h]``.

        Parallel: the context group in every layer's attention; the tensor group in linears and in the head.
        """
        hidden = self.embedding(input_ids=packed.tokens[None], position_ids=None) if self.pre_process else None
        hidden = self.decoder(hidden_states=hidden, attention_mask=None, packed_seq_params=self.attention_of(packed))
        if not self.post_process:
            return hidden
        states = self._whole_states(hidden)
        return states if states_alone else self._scores(states, packed)

    def choices(self, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Say how the head scores labels, on the last stage; forward only.

        Args:
            states: last hidden states ``[s/cp, h]``, as ``forward(..., states_alone=True)`` gives them.
            labels: ``[s/cp]``.

        Returns:
            Log-probs, and whether greedy decoding would choose the labels, see `linear_choices`.
        """
        weight = self.head_weight
        shard = VocabShard.of(weight.size(0), self.architecture.vocab_size, self.pg_collection.tp)
        return linear_choices(states, weight, labels, shard, self.logit_chunk_size)

    @property
    def head_weight(self) -> Tensor:
        """This rank's rows of the output weight, ``[v/tp, h]``; on the last stage only."""
        return self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else self.output_layer.weight

    def _whole_states(self, hidden: Tensor) -> Tensor:
        """Last hidden states of this rank's rows, ``[s/cp, h]``, on every rank of the tensor group."""
        group = self.pg_collection.tp
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True, group=group)
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden, group=group)
        return hidden[:, 0]

    def _scores(self, states: Tensor, packed: PackedInput) -> Tensor:
        weight, chunk_size, teacher = self.head_weight, self.logit_chunk_size, packed.teacher
        shard = VocabShard.of(weight.size(0), self.architecture.vocab_size, self.pg_collection.tp)
        log_probs = linear_log_probs(states, weight, packed.labels, shard, chunk_size, packed.known_weights)
        if teacher is None:
            return log_probs
        taught = (teacher.rows >= 0).nonzero().squeeze(1)
        theirs = teacher.states[teacher.rows[taught]]
        divergence = linear_kl(states[taught], weight, theirs, teacher.weight, shard, chunk_size)
        return torch.stack([log_probs, torch.zeros_like(log_probs).index_put((taught,), divergence)])


def padded_vocab_size(vocab_size: int, tp_size: int) -> int:
    """The vocabulary rounded up to equal shards. Padding rows exist in memory only; they never enter a softmax."""
    return -(-vocab_size // tp_size) * tp_size


def build_model(
    architecture: ModelArchitecture, parallel: ParallelConfig, training: TrainingConfig, state: ParallelState
) -> list[LogProbGPTModel]:
    """This rank's model chunks (one, unless the pipeline is interleaved), on the rank's device, with random weights."""
    from megatron_longpo.parallel import cpu_backend

    config = build_transformer_config(architecture, parallel, training)
    chunks = virtual_pipeline_size(architecture, parallel) or 1
    stage, stages = state.pp_group.rank(), state.pp_group.size()
    return [
        LogProbGPTModel(
            config,
            architecture,
            padded_vocab_size(architecture.vocab_size, state.tp_group.size()),
            training.logit_chunk_size,
            state.exchange,
            core_attention(training.attention_backend),
            pre_process=stage == 0 and chunk == 0,
            post_process=stage == stages - 1 and chunk == chunks - 1,
            vp_stage=chunk if chunks > 1 else None,
            keep_attention=not training.recompute_attention,
        ).to(cpu_backend.device(), dtype=torch.bfloat16 if training.bf16 else torch.float32)
        for chunk in range(chunks)
    ]
