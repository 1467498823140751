"""Who says which answer is better."""
