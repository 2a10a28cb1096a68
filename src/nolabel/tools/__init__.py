"""Verbs that stand above the engine: scan, pack, bench, plan, ablate, demo, show, report."""
