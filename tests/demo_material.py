"""Write what `make demo` works on: a moving portrait, tones, and a small model filled by rule.

The model is untrained, so the mouth it paints is noise; it shows that everything runs.
"""

import sys
from pathlib import Path

from portrait import write_portrait, write_tones
from small_models import save_tiny_folder


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_portrait(folder / "portrait.mp4", count=50)
    write_tones(folder / "tones.wav", seconds=3.0)
    save_tiny_folder(folder / "model")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
