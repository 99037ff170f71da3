"""Every setting of a run, as frozen dataclasses grouped by subject.

Field names are the flags (``context_parallel_size`` is ``--context-parallel-size``), spelt as Megatron-LM spells them where
the meaning is the same. The string under each field is its ``--help`` text and its row in docs/configuration.md.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

NllScope = Literal["all", "no-template", "answers"]
TurnAggregation = Literal["sum", "per-turn"]
LossType = Literal["sigmoid", "hinge", "ipo", "simpo", "solo-dpo", "solo-simpo", "solo-orpo", "sft-s2l"]
ReferenceContext = Literal["short", "long"]
LrDecayStyle = Literal["cosine", "linear", "constant"]
CpCommType = Literal["auto", "all_gather", "a2a", "p2p", "a2a+p2p"]
RecomputeGranularity = Literal["full", "selective"]
LoraTarget = Literal[
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    "linear_qkv", "linear_proj", "linear_fc1", "linear_fc2",
]  # fmt: skip
RecomputeMethod = Literal["uniform", "block"]


def choices(default: object, *values: str) -> object:
    """Declare a field whose value is one of ``values``; the flag offers exactly these."""
    return dataclasses.field(default=default, metadata={"choices": values})


def many(default: object, kind: type) -> object:
    """Declare a field that takes one or more values of ``kind`` (a tuple in Python, ``nargs='+'`` on the command line)."""
    return dataclasses.field(default=default, metadata={"nargs": "+", "type": kind})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Where the model comes from, and what overrides its own description."""

    pretrained_checkpoint: str | None = None
    """Native checkpoint directory that training starts from (made by checkpoint_conversion/hf_to_mcore.py, or an earlier
    run). Its
    architecture is read from there. Ignored, apart from the reference record, when --load finds a checkpoint to resume."""
    num_layers: int | None = None
    """Override: number of transformer layers."""
    hidden_size: int | None = None
    """Override: hidden size."""
    ffn_hidden_size: int | None = None
    """Override: width of the feed-forward layer."""
    num_attention_heads: int | None = None
    """Override: number of attention (query) heads."""
    num_query_groups: int | None = None
    """Override: number of key/value heads."""
    kv_channels: int | None = None
    """Override: dimension of one attention head."""
    norm_epsilon: float | None = None
    """Override: epsilon of the RMS norms."""
    rotary_base: float | None = None
    """RoPE base of the policy; the LongPO paper trains with 1e7 on models whose own base is 1e6. Default: the checkpoint's."""
    max_position_embeddings: int | None = None
    """Longest position that the exported configuration announces. Default: the larger of the checkpoint's and --seq-length."""
    random_init: bool = False
    """Start from random weights of the checkpoint's architecture instead of its weights (tests and benchmarks)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the model and the data are spread over processes. The data-parallel size is what remains."""

    tensor_model_parallel_size: int = 1
    """Tensor-parallel size: heads, feed-forward width and vocabulary are divided by it."""
    sequence_parallel: bool = False
    """Shard norms and residuals along the sequence inside a tensor-parallel group."""
    pipeline_model_parallel_size: int = 1
    """Pipeline-parallel size: layers are divided by it."""
    num_layers_per_virtual_pipeline_stage: int | None = None
    """Layers in one model chunk of the interleaved (virtual) pipeline schedule. Default: no interleaving."""
    context_parallel_size: int = 1
    """Context-parallel size: the packed sequence is divided by it (zigzag), any head count."""
    cp_comm_type: CpCommType = choices("auto", "auto", "all_gather", "a2a", "p2p", "a2a+p2p")  # type: ignore[assignment]
    """How context-parallel ranks share attention: all gather keys and values, trade sequence for heads (Ulysses), pass keys and
    values round a ring, or trade inside small groups and ring between them. ``auto`` chooses and logs why."""
    hierarchical_context_parallel_sizes: tuple[int, ...] = many((), int)  # type: ignore[assignment]
    """With ``a2a+p2p``: ranks that trade for heads, and ranks of a ring; their product is the context-parallel size.
    Default: the largest trade that the heads and a node allow."""
    use_distributed_optimizer: bool = False
    """Shard optimizer states and main weights over the data-parallel group."""
    overlap_grad_reduce: bool = False
    """Overlap the reduction of gradients with the backward pass."""
    overlap_param_gather: bool = False
    """Overlap the gathering of updated weights with the forward pass (distributed optimizer only)."""
    distributed_timeout_minutes: int = 30
    """Deadline of a collective, in minutes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which pairs are read, and in which order."""

    data_path: tuple[str, ...] = many((), str)  # type: ignore[assignment]
    """Dataset prefixes made by tools/preprocess_preference_data.py, each optionally preceded by a weight:
    ``0.7 /data/books 0.3 /data/code``."""
    split: str = "100,0"
    """Train and validation shares of the documents of each dataset, e.g. ``99,1``. Chosen by seed, disjoint."""
    seq_length: int = 4096
    """Longest side of a pair, in tokens. Pairs with a longer side are refused (they are dropped at preprocessing, never cut)."""
    drop_last: bool = True
    """With --num-epochs: leave out the last incomplete global batch; --no-drop-last fills it from the next epoch."""
    prefix_sharing: bool = True
    """Encode the tokens that chosen and rejected have in common once; --no-prefix-sharing: two sequences, same result, slower."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The LongPO objective: ``nll_weight * NLL + preference_weight * PREF`` for each document."""

    beta: float = 0.1
    """Inverse temperature of the preference, in 1/nat (paper: 0.1; released code: 0.01); ipo: its tau;
    solo-orpo: weight of the odds ratio, as in TRL."""
    preference_weight: float = 0.01
    """Weight (lambda) of the preference term (paper Eq. 14)."""
    nll_weight: float = 1.0
    """Weight of the negative log-likelihood of the chosen long sequence."""
    nll_scope: NllScope = choices("all", "all", "no-template", "answers")  # type: ignore[assignment]
    """Targets of the NLL: every token of the chosen sequence, all but the template's own tokens, or the answers only."""
    turn_aggregation: TurnAggregation = choices("sum", "sum", "per-turn")  # type: ignore[assignment]
    """One sigmoid over the sum of the turns' margins, or one sigmoid a turn and their mean; so for every loss type."""
    loss_type: LossType = choices("sigmoid", *get_args(LossType))  # type: ignore[assignment]
    """Preference loss. Of the margin: ``sigmoid`` (LongPO, DPO), ``hinge``, ``ipo``; without a reference: ``simpo``. SoLoPO,
    which prefers on the short contexts and aligns the chosen answers' rewards on long and short ones: ``solo-dpo`` (both
    reference caches), ``solo-simpo``, ``solo-orpo`` (no reference). Distillation instead of a preference: ``sft-s2l``, beta times
    the divergence from the reference on the short context (--reference live)."""
    simpo_gamma: float = 0.5
    """With --loss-type simpo or solo-simpo: by how much the chosen answer's reward should be above the rejected one's."""
    solo_alpha: float | None = None
    """With --loss-type solo-*: weight of the alignment beside the preference. Default: 3 for solo-dpo, 1 for the two others."""
    label_smoothing: float = 0.0
    """Assumed probability that a preference label is wrong, in [0, 0.5)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """Where the reference's log-probs come from."""

    reference: Literal["cache", "live"] = choices("cache", "cache", "live")  # type: ignore[assignment]
    """Read them from the cache beside each dataset, or compute them in the run with a frozen model. With --lora-rank the live
    reference is the run's own model with its adapters switched off."""
    reference_checkpoint: str | None = None
    """Native checkpoint of the reference model. Default: --pretrained-checkpoint."""
    reference_rotary_base: float | None = None
    """RoPE base of the reference. Default: the reference checkpoint's own."""
    reference_context: ReferenceContext = choices("short", "short", "long")  # type: ignore[assignment]
    """The reference reads each turn's short context alone (LongPO), or the long chat with same-side history (DPO)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters: beside each frozen linear two small matrices are trained, and nothing else."""

    lora_rank: int | None = None
    """Rank of the adapters. Default: no adapters; every weight of the model is trained."""
    lora_alpha: float = 32.0
    """The adapters' output is multiplied by alpha / rank."""
    lora_target_modules: tuple[LoraTarget, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    """Linears that get adapters, by their Hugging Face names or by Megatron-Core's (linear_qkv is query, key and value;
    linear_fc1 is gate and up)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule."""

    optimizer: Literal["adam", "rmsprop", "sgd"] = choices("adam", "adam", "rmsprop", "sgd")  # type: ignore[assignment]
    """Optimizer (paper: adam; released code: rmsprop)."""
    lr: float = 5e-7
    """Peak learning rate (paper: 5e-7)."""
    min_lr: float = 0.0
    """Learning rate at the end of the decay."""
    lr_decay_style: LrDecayStyle = choices("cosine", "cosine", "linear", "constant")  # type: ignore[assignment]
    """Shape of the decay after the warm-up."""
    lr_warmup_fraction: float | None = None
    """Share of the training over which the learning rate rises from zero. Default: 0.1 unless --lr-warmup-iters is given."""
    lr_warmup_iters: int | None = None
    """Iterations over which the learning rate rises linearly from zero. Excludes --lr-warmup-fraction."""
    weight_decay: float = 0.0
    """Decoupled weight decay (norms and biases are exempt)."""
    adam_beta1: float = 0.9
    """Adam: decay of the first moment."""
    adam_beta2: float = 0.999
    """Adam: decay of the second moment."""
    adam_eps: float = 1e-8
    """Adam: term added to the denominator."""
    rmsprop_alpha: float = 0.99
    """RMSprop: decay of the second moment."""
    rmsprop_eps: float = 1e-8
    """RMSprop: term added to the denominator."""
    sgd_momentum: float = 0.0
    """SGD: momentum."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    optimizer_cpu_offload: bool = False
    """Keep optimizer states in the host's memory and update there. Needs a GPU, Transformer Engine and
    --use-distributed-optimizer."""
    optimizer_offload_fraction: float = 1.0
    """With --optimizer-cpu-offload: share of the states that is moved."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length of the training, precision and memory."""

    train_iters: int | None = None
    """Number of iterations. Exactly one of --train-iters, --train-samples, --num-epochs sets the length."""
    train_samples: int | None = None
    """Number of pairs; rounded down to whole global batches."""
    num_epochs: float | None = None
    """Passes over the training split (of all datasets together, in their mixing weights)."""
    micro_batch_size: int | None = None
    """Pairs packed into one micro-batch sequence of one data-parallel rank. Default: 1 unless --micro-batch-tokens is given."""
    micro_batch_tokens: int | None = None
    """Pack pairs into one micro-batch sequence up to this many rows, so that data-parallel ranks get equal work in each global
    batch; a longer pair stands alone. Excludes --micro-batch-size."""
    global_batch_size: int = 8
    """Pairs in one iteration, over all data-parallel ranks and micro-batches (paper: 8)."""
    seed: int = 42
    """Seed of the data order, of the split and of random initialisation."""
    bf16: bool = False
    """Compute in bfloat16 with fp32 main weights and gradients (needs a GPU or a CPU with native bf16)."""
    attention_backend: Literal["auto", "flash", "te"] = choices("auto", "auto", "flash", "te")  # type: ignore[assignment]
    """Core attention. ``flash``, which ``auto`` is: planned blocks on the flash kernel that the machine has. ``te``: Transformer
    Engine's own, on a GPU, for runs without prefix sharing and context parallelism."""
    recompute_granularity: RecomputeGranularity | None = choices(None, "full", "selective")  # type: ignore[assignment]
    """Keep less for the backward pass and compute it again there: whole layers, or their feed-forward halves only."""
    recompute_method: RecomputeMethod = choices("uniform", "uniform", "block")  # type: ignore[assignment]
    """With --recompute-granularity full: recompute every layer, in units of --recompute-num-layers, or only that many first
    layers of each pipeline stage (with interleaving: of each model chunk)."""
    recompute_num_layers: int = 1
    """With --recompute-granularity full: layers in one recomputed unit (uniform), or layers that are recomputed (block)."""
    recompute_attention: bool = True
    """With --recompute-granularity full: attend again too. --no-recompute-attention keeps attention's output, as large as a
    layer's input, so that what dominates long sequences is computed once."""
    cpu_offloading_num_layers: int = 0
    """Layers whose saved activations wait in the host's memory for the backward pass. Needs a GPU and Transformer Engine."""
    logit_chunk_size: int = 1024
    """Rows of logits that exist at once in the language-model head, at most; fewer where they would take more than 512 MiB."""
    eval_interval: int | None = None
    """Iterations between validations on the held-out split. Default: none."""
    eval_iters: int | None = None
    """Global batches of one validation. Default: the whole held-out split."""
    deterministic_mode: bool = True
    """Ask PyTorch for deterministic algorithms where it has them. On a CPU a resumed run then equals the uninterrupted one bit
    for bit. On a GPU this is not promised: flash-attn's backward becomes deterministic, for more time and memory, but PyTorch's
    own flash attention does not, and PyTorch warns of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What the model is asked while it trains: right answers to long prompts, scored in one forward pass (docs/evaluation.md)."""

    eval_tasks: tuple[str, ...] = many((), str)  # type: ignore[assignment]
    """RULER's tasks of one answer with their lengths in tokens, ``niah:2048,4096`` or one such as ``niah_single_2:4096``, and
    your own questions, ``questions:[NAME=]FILE.jsonl``."""
    eval_tasks_interval: int | None = None
    """Iterations between evaluations on --eval-tasks; there is one at the end in any case."""
    eval_tasks_samples: int = 20
    """Samples of each of RULER's tasks at each length, and questions of each group of a file, at most."""
    eval_tasks_haystack: str | None = None
    """Text that RULER's needles are hidden in: a file, or a folder of .txt and .md. Default: Python's language reference."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Native checkpoints."""

    save: str | None = None
    """Directory that checkpoints are written to."""
    load: str | None = None
    """Directory to resume from (usually the same as --save). Without a checkpoint there, the run starts anew."""
    save_interval: int | None = None
    """Iterations between checkpoints; one is written at the end in any case."""
    keep_checkpoints: int | None = None
    """Number of newest checkpoints to keep. Default: all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What is told, where, and how often."""

    log_interval: int = 1
    """Iterations between console lines."""
    tensorboard_dir: str | None = None
    """Directory of TensorBoard event files. Default: tensorboard/ under --save."""
    metrics_file: str | None = None
    """JSON Lines file of metrics, one object an iteration. Default: metrics.jsonl under --save."""
    wandb_project: str | None = None
    """Weights & Biases project; needs the wandb package. Default: off."""
    wandb_name: str | None = None
    """Weights & Biases run name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run."""

    model: ModelConfig = ModelConfig()
    parallel: ParallelConfig = ParallelConfig()
    data: DataConfig = DataConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    reference: ReferenceConfig = ReferenceConfig()
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
