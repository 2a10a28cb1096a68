"""Published checkpoints and other libraries' layouts, in and out."""
