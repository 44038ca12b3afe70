"""The systems: one file is one system (its config, its module, its loss, its paper)."""
