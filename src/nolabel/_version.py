"""The version, in one place: `nolabel.__version__`, files of runs and the package's metadata."""

__version__ = "0.1.0"
