"""Conversion package."""
