"""The objective and its metrics: pure functions of tensors. Imports torch and the configuration, nothing else."""
