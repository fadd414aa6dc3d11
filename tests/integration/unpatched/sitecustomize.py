"""As the product's own, but the AOT patch believes that it is not needed."""

import runpy
from pathlib import Path

from serve.plugin import aot_reload

aot_reload.needed = lambda: False
runpy.run_path(Path(__file__).parents[3] / "serve/plugin/early/sitecustomize.py")
