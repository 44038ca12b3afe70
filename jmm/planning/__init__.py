"""Compiles an experiment for a slice without hardware, and says what it will need there."""
