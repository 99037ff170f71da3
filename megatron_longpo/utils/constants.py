"""Values that several packages agree on."""

IGNORE_INDEX = -100
"""Label of a row that has no target."""
