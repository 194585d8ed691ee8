"""Models and face models below several roots, as programs with model folders of their own have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import CheckpointError, Remedy
from .checkpoints import FACE_FILES, MODEL_FILES, PACKAGE, find_model_folder
from .loading import UNET_FILES, WEIGHT_SUFFIXES

NAMED = (*MODEL_FILES, "demo")
_NO_UNETS = {"tiny.pt", "audio_encoder.safetensors", "vae.safetensors"}


def installed_models(roots: Sequence[Path]) -> list[str]:
    """The named models, there or not, then folders that hold a UNet and single files of weights, by name."""
    found: set[str] = set()
    for root in roots:
        for path in root.iterdir() if root.is_dir() else ():
            if _is_model(path):
                found.add(path.name)
    return [*NAMED, *sorted(found - set(NAMED))]


def _is_model(path: Path) -> bool:
    if path.is_dir():
        return any((path / name).is_file() for name in UNET_FILES)
    return path.suffix in WEIGHT_SUFFIXES and path.name not in _NO_UNETS


def find_model(name: str, roots: Sequence[Path]) -> Path:
    """The folder or file of one of `installed_models`, in the first root that has it complete.

    Raises CheckpointError naming the files that are missing and the folder they belong to.
    """
    if name in NAMED:
        missing: CheckpointError | None = None
        for root in roots:
            try:
                return find_model_folder(name, root)
            except CheckpointError as error:
                missing = missing or error
        raise (
            missing if missing is not None else CheckpointError(f"There is no folder to look for {name} in.")
        )
    for root in roots:
        # Only what `installed_models` would list: a name may come from anybody who can send a graph.
        if name in installed_models([root]):
            return root / name
    places = ", ".join(map(str, roots))
    raise CheckpointError(f"The model {name!r} is not in {places}; choose one of {installed_models(roots)}.")


def find_faces(roots: Sequence[Path]) -> Path:
    """The folder of the face models, in the first root, or the package, that has them.

    Raises CheckpointError naming the files and where they belong.
    """
    names = [file.relative.name for file in FACE_FILES]
    for root in (*roots, PACKAGE / "checkpoints"):
        if all((root / file.relative).is_file() for file in FACE_FILES):
            return root / "faces"
    raise CheckpointError(
        f"The face models {' and '.join(names)} are not in {roots[0] / 'faces'}; "
        "checkpoints/README.md says where they come from.",
        remedies=(Remedy.DOWNLOAD_FACES,),
    )
