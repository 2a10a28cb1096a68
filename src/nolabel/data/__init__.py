"""Where images come from: sources, their order, and the loader that makes batches of them."""
