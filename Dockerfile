# GPU machines: NVIDIA's PyTorch image brings torch, Transformer Engine, flash-attn and NCCL built for each other, and they are
# kept. This file has not been built or run yet: please report what you find.
#
#   docker build -t megatron-longpo .
#   docker run --gpus all --ipc host --ulimit memlock=-1 -v "$PWD/runs:/workspace/runs" megatron-longpo \
#       torchrun --nproc-per-node 8 pretrain_longpo.py --help
FROM nvcr.io/nvidia/pytorch:25.11-py3

WORKDIR /workspace
COPY . .

# The image lists its own builds in a constraint file that pip reads; the tests' constraints are for machines without them.
RUN python -m pip install --no-cache-dir ".[wandb]"

ENV CUDA_DEVICE_MAX_CONNECTIONS=1
