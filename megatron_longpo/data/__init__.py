"""From text pairs to micro-batches: records, templates, indexed files, sampling, packing. Start with `pair`, then `packing`."""
