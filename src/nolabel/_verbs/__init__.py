"""The verbs of the command line as functions, for `import nolabel as nl`.

Modules are imported inside the functions that use them, so `import nolabel` takes little time.
"""
