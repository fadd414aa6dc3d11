"""Put on ``PYTHONPATH`` of the CPU engine: patches torchvision just before its first import.

A general plugin is too late for that one: transformers imports torchvision while ``vllm.config``
is imported, in every process of the engine, the model-inspection subprocess included. Until
something asks for torchvision this costs one object on ``sys.meta_path`` and imports nothing.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class BeforeTorchvision(MetaPathFinder):
    """Finds no module itself; seeing ``torchvision`` asked for, it patches and steps aside."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            # find_spec("torchvision") is also how its presence is asked for, so the patch must
            # be harmless when no import follows: it declares two schemas and nothing else.
            from serve.plugin.patches import TORCHVISION_OPS, apply_all

            apply_all([TORCHVISION_OPS])
        return None


sys.meta_path.insert(0, BeforeTorchvision())
