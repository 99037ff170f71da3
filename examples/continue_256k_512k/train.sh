#!/usr/bin/env bash
# usage: train.sh 256k|512k [FLAGS]
# The next lengths of Mistral: from the run of examples/mistral_7b_128k to 256K, and from the same run to 512K (the paper's public
# 512K model started from the 128K one). Two nodes of 8 GPUs of 80 GB (examples/slurm). Running it again resumes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

LENGTH=${1:?give the target length: 256k or 512k}
shift
case $LENGTH in
    256k) SEQ_LENGTH=262144 ;;
    512k) SEQ_LENGTH=524288 ;;
    *) echo "error: no target length $LENGTH; give 256k or 512k" >&2; exit 2 ;;
esac

PREVIOUS=${PREVIOUS:-checkpoints/mistral_7b_128k} # made by convert.sh
DATA=${DATA:-data/continue_$LENGTH/pairs}
RUN=${RUN:-runs/continue_$LENGTH}
read -ra TORCHRUN_ARGS <<<"${TORCHRUN_ARGS:---standalone}"
export CUDA_DEVICE_MAX_CONNECTIONS=1 # Megatron-Core overlaps tensor-parallel communication only so

PARALLEL_ARGS=(
    --tensor-model-parallel-size 4
    --sequence-parallel
    --context-parallel-size 4
    --use-distributed-optimizer
    --overlap-grad-reduce
    --overlap-param-gather
)
MODEL_ARGS=(
    --pretrained-checkpoint "$PREVIOUS" # the model of the previous length is the start and the reference
    --rotary-base 1e7
)
DATA_ARGS=(
    --data-path "$DATA"
    --seq-length "$SEQ_LENGTH"
)
LONGPO_ARGS=(
    --preset paper
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
    --save-interval 100
    --keep-checkpoints 2
)
ARGS=("${PARALLEL_ARGS[@]}" "${MODEL_ARGS[@]}" "${DATA_ARGS[@]}" "${LONGPO_ARGS[@]}" "${TRAINING_ARGS[@]}" "${OUTPUT_ARGS[@]}")

exec torchrun "${TORCHRUN_ARGS[@]}" --nproc-per-node "${PROCESSES_PER_NODE:-8}" pretrain_longpo.py "${ARGS[@]}" "$@"
