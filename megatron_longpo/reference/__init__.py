"""The reference's log-probs: computed once, kept beside the dataset, or live in the run. Start with `scoring`."""
