"""Parallel package."""
