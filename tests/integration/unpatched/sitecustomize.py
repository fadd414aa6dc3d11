"""As the product's own, but the AOT patch believes that it is not needed."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from serve.plugin import aot_reload

aot_reload.needed = lambda: False

EARLY = Path(__file__).parents[3] / "serve/plugin/early/sitecustomize.py"
spec = spec_from_file_location("early_sitecustomize", EARLY)
sys.modules["early_sitecustomize"] = early = module_from_spec(spec)
spec.loader.exec_module(early)
