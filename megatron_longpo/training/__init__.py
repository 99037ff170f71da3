"""The training run: step, optimizer, loop, checkpoints, logs. Start with `loop`."""
