"""Round after round: a chain of commands that knows what is done, what changed, and when to stop."""
