"""Learns beside torch's import what transformers would look up afterwards, in its own import.

To know what it could import, transformers 5 parses the 2,000 files of its models and asks every
installed distribution for its packages, which is a good part of a zygote's imports. So a fork of
the still empty process does that on another core, by transformers' own functions, and hands over
what they returned. Whatever goes wrong there, transformers does it itself as ever.
"""

import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from serve.plugin.aside import Aside

# Packages to distributions; then arguments, named ones, and what `define_import_structure` returns.
Answers = tuple[dict[str, list[str]], list[tuple[tuple[Any, ...], dict[str, Any], Any]]]
MODULE = "transformers.utils.import_utils"


def begin() -> None:
    """Fork, and have the answers when ``transformers`` asks. To be called before torch."""
    if find_spec("transformers") is not None:
        sys.meta_path.insert(0, AtImportUtils(Aside(_look)))


def _look() -> Answers:
    """What the packages of each distribution are, and every import structure with its arguments."""
    # That finder patches torchvision as soon as it is asked for, and imports torch to do so.
    sys.meta_path[:] = [one for one in sys.meta_path if type(one).__module__ != "sitecustomize"]
    packages = importlib.metadata.packages_distributions()
    importlib.metadata.packages_distributions = lambda: packages
    import transformers
    from transformers.utils import import_utils

    models = Path(transformers.__file__).parent / "models"
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((models,), {"prefix": "models"}),
        ((str(models / "__init__.py"),), {}),
    ]
    define = import_utils.define_import_structure
    return dict(packages), [(args, named, define(*args, **named)) for args, named in asked]


class AtImportUtils(MetaPathFinder):
    """Finds ``MODULE`` as ever, with a loader that puts the answers in."""

    def __init__(self, answers: Aside[Answers]) -> None:
        self._answers = answers

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        answers = self._answers.result()
        if answers is not None and spec is not None and spec.loader is not None:
            spec.loader = WithAnswers(spec.loader, *answers)
        return spec


class WithAnswers(Loader):
    """Runs the module's own code, less the two searches whose results are known."""

    def __init__(self, loader: Loader, packages: dict[str, list[str]], structures: Any) -> None:
        self._loader = loader
        self._packages = packages
        self._structures = structures

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        ask = importlib.metadata.packages_distributions
        importlib.metadata.packages_distributions = lambda: self._packages
        try:
            self._loader.exec_module(module)
        finally:
            importlib.metadata.packages_distributions = ask
        define = module.define_import_structure
        module.define_import_structure = self._answering(define)  # type: ignore[attr-defined]

    def _answering(self, define: Callable[..., Any]) -> Callable[..., Any]:
        def define_import_structure(*args: Any, **named: Any) -> Any:
            for known_args, known_named, answer in self._structures:
                if (args, named) == (known_args, known_named):
                    return answer
            return define(*args, **named)

        return define_import_structure
