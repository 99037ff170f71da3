#!/usr/bin/env bash
# usage: convert.sh [128k|256k|512k]
# The newest checkpoint of a run -> Hugging Face folder, and for the next length that -> native checkpoint: a reference needs weights with
# a hash, which a training checkpoint has not. The 128k model writes the pairs of both next lengths.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

case ${1:-128k} in
    128k) NAME=mistral_7b_128k ;;
    256k | 512k) NAME=continue_$1 ;;
    *) echo "error: no length $1; give 128k, 256k or 512k" >&2; exit 2 ;;
esac
RUN=${RUN:-runs/$NAME}
EXPORT=${EXPORT:-exported/$NAME}
NATIVE=${NATIVE:-checkpoints/$NAME}

python checkpoint_conversion/mcore_to_hf.py --load "$RUN" --save "$EXPORT" --dtype bfloat16
if [[ ${1:-128k} != 512k ]]; then
    python checkpoint_conversion/hf_to_mcore.py --hf "$EXPORT" --save "$NATIVE"
fi
