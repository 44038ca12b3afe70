"""Evaluations: one file is one. Each is a frozen dataclass with `run` and `draw`."""
