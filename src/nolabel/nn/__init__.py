"""Shared blocks of networks and losses: small, and stateless but for `state`."""
