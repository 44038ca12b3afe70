"""The mesh, the rules that place arrays on it, and the processes that share it."""
