"""Verbs that use the engine: scan, pack, bench, plan, ablate, demo, show, report."""
