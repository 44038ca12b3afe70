"""State, step, loop, optimizer, checkpoint, metrics: knows no model."""
