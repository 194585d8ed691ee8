"""Attention modes (flex, flash, standard), slicing, and weighting of a key region."""
