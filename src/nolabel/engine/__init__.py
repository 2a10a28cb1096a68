"""The training engine: loop, optimiser, checkpoints, health, logging."""
