"""Datasets, transforms and tokenizers: NumPy on the host, no jax."""
