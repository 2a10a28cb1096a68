"""Data of published protocols, in their own layouts."""
