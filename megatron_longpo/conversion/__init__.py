"""Weights in and out: Hugging Face folders <-> Megatron-Core distributed checkpoints, streamed, without building a model.

Start with `layout` (which Hugging Face tensor lies where in a native checkpoint), then `import_hf` and `export_hf`, the two
directions.
"""
