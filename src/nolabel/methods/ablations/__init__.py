"""Methods with the switches of their paper's tables of ablations: what the pages leave out.

A file here subclasses the page whose table it is; `nolabel ablate NAME` trains it.
"""
