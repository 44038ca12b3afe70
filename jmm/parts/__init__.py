"""Flax modules that systems are built of. Each exists once.

Axis letters, the same everywhere: B batch, L text length, N image tokens, H W C image, D width, K heads,
V vocabulary.
"""
