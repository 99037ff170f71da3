"""The model: architecture record, planned attention, log-prob head. Start with `gpt`."""
