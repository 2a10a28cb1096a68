"""Data of published benchmarks, in their own layouts."""
