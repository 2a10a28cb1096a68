"""Watches a run while it trains: metrics, probe, snapshots, doctor, init guard, progress."""
