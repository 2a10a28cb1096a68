"""Captions of a data set, and the tokenizer that is trained on them."""
