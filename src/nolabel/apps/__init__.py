"""Uses of a trained encoder."""
