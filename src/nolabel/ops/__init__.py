"""Stateless maths that several methods share."""
