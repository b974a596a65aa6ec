"""What lies in a folder of images. Imports nothing heavy: the workflow asks while it is parsed."""

import hashlib
import os
from pathlib import Path
from typing import Any


def list_files(path: Path) -> list[Path]:
    """Every file under `path`, sorted; hidden ones (`.DS_Store`, `._scan.nii.gz`) left out.

    Raises:
        OSError: there is no such folder, it is a file, or a folder in it cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"images.path: there is no folder {path}")
    if not path.is_dir():
        raise NotADirectoryError(f"images.path: {path} is a file; give the folder it lies in")

    def refuse(error: OSError) -> None:
        raise PermissionError(f"images.path: cannot read the folder {error.filename} ({error.strerror})") from error

    files = []
    for folder, subfolders, names in os.walk(path, onerror=refuse, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [Path(folder) / name for name in names if not name.startswith(".")]
    return sorted(files)


def source_state(images_config: dict[str, Any]) -> str:
    """A digest of the names, sizes and times of the files that `images.path` names; "" for bundled images.

    As a parameter of the rule that lists the images it makes Snakemake list them again when a file was added,
    removed or replaced. A path that cannot be read gives "unreadable": the rule itself then says what is
    wrong with it.
    """
    if not images_config.get("path") or images_config["source"] == "bundled":
        return ""
    path = Path(images_config["path"]).expanduser()
    try:
        files = list_files(path) if path.is_dir() else [path]
        lines = "".join(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}\n" for file in files)
    except OSError:
        return "unreadable"
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
