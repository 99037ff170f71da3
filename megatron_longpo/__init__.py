"""LongPO on Megatron-Core: long-context preference optimisation that is exact in every layout."""

__version__ = "0.1.0"
