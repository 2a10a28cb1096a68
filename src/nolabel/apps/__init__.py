"""Applications of a trained encoder: features of a data set, and search among them."""
