"""Contests of the trainer against what a user would pick instead. `python -m benchmarks.run` runs them all."""
