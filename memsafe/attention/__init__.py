"""Attention modes (flex, flash, standard), kernel limits by device, slicing, and weighting of a key region."""
