"""Data sets for developing recipes, as folders of files: drawn by programs, or named sets."""
