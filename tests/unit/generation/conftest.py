"""Models that are asked."""

from tests.support.asked_models import chain_model, random_model

__all__ = ["chain_model", "random_model"]
