"""Losses: pure functions of arrays, accumulated in float32."""
