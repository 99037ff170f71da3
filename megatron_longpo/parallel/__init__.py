"""Everything that knows a rank: groups, sharding of a sequence, collectives, and the CPU's stand-in for CUDA. Start with `state`."""
