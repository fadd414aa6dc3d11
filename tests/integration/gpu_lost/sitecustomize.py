"""As the product's own, but the identity shim takes this build of torch for one with CUDA.

What it then meets at Inductor's first look is a machine without a GPU: the late refusal.
"""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from serve.plugin import identity


def apply() -> None:
    identity._wrap_key(os.environ[identity.PRESENT_AS])
    identity._wrap_check()


identity.apply = apply

EARLY = Path(__file__).parents[3] / "serve/plugin/early/sitecustomize.py"
spec = spec_from_file_location("early_sitecustomize", EARLY)
sys.modules["early_sitecustomize"] = early = module_from_spec(spec)
spec.loader.exec_module(early)
