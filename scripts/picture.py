"""How a picture of figures is kept: an SVG whose text stays text, the same bytes for the same
figures, so that a page changes with what was measured alone. Knows nothing of what is drawn.
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from blob.files import replace

STYLE = {"svg.fonttype": "none", "svg.hashsalt": "preheat", "font.size": 9}


def keep(path: Path, draw: Callable[[], Figure]) -> None:
    """What ``draw`` gives, at ``path``: whole, or what stood there before.

    :raises OSError: it cannot be written.
    """
    drawn = BytesIO()
    with mpl.rc_context(STYLE):
        # Sizes of letters are taken where texts are made, salts and fonts where they are written.
        draw().savefig(drawn, format="svg", metadata={"Date": None})
    replace(path, drawn.getvalue(), 0o644)
