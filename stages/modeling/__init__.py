"""Models: architectures, loading, adapters, and the two forward passes."""
