"""Reading and writing of files that others may have written."""
