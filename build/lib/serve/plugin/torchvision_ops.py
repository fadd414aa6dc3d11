"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

PyPI has no CPU torchvision. Its op library cannot load here, so the fake kernels that
``import torchvision`` registers find no ``torchvision::nms`` and the import raises. Declaring
the two schemas first is enough: text models never call them.
"""

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def needed() -> bool:
    """Whether torch is a CPU build, torchvision a CUDA build, and the schemas are not there."""
    import torch

    return (
        torch.version.cuda is None
        and not hasattr(torch.ops.torchvision, "nms")
        and _torchvision_is_cuda_build()
    )


def apply() -> None:
    """Declare the schemas; the library object must outlive the process's use of them."""
    _library()


@cache
def _library() -> Any:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    return library


def _torchvision_is_cuda_build() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    # Read, not imported: importing is what fails.
    version = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    return re.search(r"__version__ = '[^']*\+cu\d+'", version) is not None
