"""Protocols: how good is an encoder? One a file; `run` has the table."""
