"""Image sources, one per file: folders, lists, tar shards, videos, arrays, named data sets."""

from nolabel._moved import former_functions

__getattr__ = former_functions(__name__)
