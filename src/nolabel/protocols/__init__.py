"""Evaluation protocols, one per file; `run` has their table."""
