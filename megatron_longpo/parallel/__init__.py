"""Everything that knows a rank: groups, sharding, collectives, and the CPU's stand-in for CUDA. Start with `state`."""
