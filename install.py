"""What ComfyUI Manager runs after `pip install -r requirements.txt`: fetches the two face models.

They are compared with their hashes and put into models/latentsync/faces. What is there already is not fetched
again, and without a network nothing is changed; the nodes then say what is missing.
"""

import importlib.util
import io
import sys
from pathlib import Path

FOLDER = Path(__file__).absolute().parent
PACKAGE = "latentsync_memsafe"


def main() -> None:
    """Fetch them and say where they are, or why not; never ends with an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="replace"
        )  # a folder's name may have letters that a Windows console lacks
    try:
        _import_pack()
        from latentsync_memsafe.latentsync.weights.download import download

        for path in download("faces"):
            print(f"LatentSync: {path}")
    except Exception as error:  # whatever it is, the installation of the pack has succeeded
        print(f"LatentSync: the face models were not fetched; the nodes work when they are there. {error}")


def _import_pack() -> None:
    """Make this folder importable by the package's name, whatever the folder is called."""
    spec = importlib.util.spec_from_file_location(
        PACKAGE, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    main()
