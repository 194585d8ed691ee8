"""Files of weights: read them safely, name what they are, and put them into modules."""

from .files import assign_weights, read_checkpoint, read_state_dict, state_dict_of

__all__ = ["assign_weights", "read_checkpoint", "read_state_dict", "state_dict_of"]
