"""Image sources, one per file: folders, lists, tar shards, videos, arrays, named data sets."""
