"""Download of the two face models, run by ComfyUI Manager after `pip install -r requirements.txt`.

They are compared with their hashes and put into models/latentsync/faces. Files that exist are not downloaded
again, and without a network nothing changes; the nodes then say what is missing.
"""

import importlib.util
import io
import sys
from pathlib import Path

FOLDER = Path(__file__).absolute().parent
PACKAGE = "latentsync_memsafe"


def main() -> None:
    """Download the files and print their paths, or the reason why not; never raises."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The name of a folder may have letters that a Windows console lacks.
        sys.stdout.reconfigure(errors="replace")
    try:
        _import_pack()
        from latentsync_memsafe.latentsync.weights.download import download

        for path in download("faces"):
            print(f"LatentSync: {path}")
    except Exception as error:  # of any kind: the installation of the pack has succeeded
        print(f"LatentSync: the face models were not fetched; the nodes work when they are there. {error}")


def _import_pack() -> None:
    """Make this folder importable by the package's name, whatever name the folder has."""
    spec = importlib.util.spec_from_file_location(
        PACKAGE, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    main()
