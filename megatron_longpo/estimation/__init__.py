"""What a run will need, by arithmetic: bytes by cause, FLOPs, and the layouts that fit. No torch, no model, no processes."""
