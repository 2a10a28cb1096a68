"""Captions of a data set and the tokenizer that is learnt from them."""
