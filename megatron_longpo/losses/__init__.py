"""Losses package."""
