"""Checkpoints in and out: ours, and other frameworks'."""
