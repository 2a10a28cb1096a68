"""The verbs of the command line as functions, for `import nolabel as nl`.

Everything is imported where it is first used, so that `import nolabel` is quick.
"""
