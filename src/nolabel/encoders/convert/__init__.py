"""Import of published checkpoints, and export to other libraries."""
