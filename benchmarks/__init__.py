"""Measurements, not tests: each writes `results/NAME.json` with the machine it ran on, and a table in README."""
