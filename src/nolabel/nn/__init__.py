"""Shared layers, losses and functions. Only `state` and `queue` have state between steps."""
