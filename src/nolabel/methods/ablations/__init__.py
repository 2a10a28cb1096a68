"""Methods with the options of their papers' ablations, which the methods' pages do not have.

Each file subclasses the method of the same name; `nolabel ablate NAME` trains the subclass.
"""
