"""File names as options."""

from __future__ import annotations

import argparse
import re
from pathlib import Path


def file_path(text: str) -> Path:
    """A path; an address on the network is refused, of which a Path would make folders such as `http:`."""
    if re.match(r"[A-Za-z][\w+.-]+://", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is an address; expected the name of a file on this machine"
        )
    return Path(text)
