#!/usr/bin/env bash
# convert.sh          Hugging Face folder $MODEL -> native checkpoint $NATIVE, before the training
# convert.sh export   the newest checkpoint of the run $RUN -> Hugging Face folder $EXPORT, after it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

MODEL=${MODEL:-models/Qwen2.5-7B-Instruct}
NATIVE=${NATIVE:-checkpoints/qwen2.5_7b_instruct}
RUN=${RUN:-runs/qwen2.5_7b_128k}
EXPORT=${EXPORT:-exported/qwen2.5_7b_128k}

if [[ ${1:-import} == export ]]; then
    exec python checkpoint_conversion/mcore_to_hf.py --load "$RUN" --save "$EXPORT" --dtype bfloat16
fi
exec python checkpoint_conversion/hf_to_mcore.py --hf "$MODEL" --save "$NATIVE"
