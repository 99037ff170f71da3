#!/usr/bin/env bash
# Qwen2.5-7B-Instruct to 128K with the paper's settings.
# One node of 8 GPUs of 80 GB; several nodes or Slurm: examples/slurm. Further flags are passed on. Running it again resumes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

NATIVE=${NATIVE:-checkpoints/qwen2.5_7b_instruct}
DATA=${DATA:-data/qwen2.5_7b_128k/pairs}
RUN=${RUN:-runs/qwen2.5_7b_128k}
read -ra TORCHRUN_ARGS <<<"${TORCHRUN_ARGS:---standalone}"
export CUDA_DEVICE_MAX_CONNECTIONS=1 # Megatron-Core overlaps tensor-parallel communication only so

PARALLEL_ARGS=(
    --tensor-model-parallel-size 4
    --sequence-parallel
    --context-parallel-size 2
    --use-distributed-optimizer
    --overlap-grad-reduce
    --overlap-param-gather
)
MODEL_ARGS=(
    --pretrained-checkpoint "$NATIVE"
    --rotary-base 1e7 # the reference keeps the model's own 1e6
)
DATA_ARGS=(
    --data-path "$DATA"
    --seq-length 131072
)
LONGPO_ARGS=(
    --preset paper # beta 0.1, lambda 0.01, Adam 5e-7, cosine with warm-up 0.1; 'release' is the public code's
    --reference cache
)
TRAINING_ARGS=(
    --num-epochs 1
    --micro-batch-size 1
    --global-batch-size 8
    --bf16
    --recompute-granularity full
    --no-recompute-attention # most of the work at this length: its output is kept, see docs/memory.md
    --seed 42
)
OUTPUT_ARGS=(
    --save "$RUN"
    --load "$RUN"
    --save-interval 500
    --keep-checkpoints 2
)
ARGS=("${PARALLEL_ARGS[@]}" "${MODEL_ARGS[@]}" "${DATA_ARGS[@]}" "${LONGPO_ARGS[@]}" "${TRAINING_ARGS[@]}" "${OUTPUT_ARGS[@]}")

exec torchrun "${TORCHRUN_ARGS[@]}" --nproc-per-node "${PROCESSES_PER_NODE:-8}" pretrain_longpo.py "${ARGS[@]}" "$@"
