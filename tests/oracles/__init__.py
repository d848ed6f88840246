"""Slow, obvious float64 references. Nothing in here imports the package under test."""
