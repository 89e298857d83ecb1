"""How Sphinx builds the manual: ``make docs``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from docs.recipe_reference import filled
from tutelage import __version__

project = "tutelage"
author = "The tutelage authors"
release = version = __version__
language = "en"

extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"tutelage {__version__}"
html_copy_source = False
html_show_copyright = False


def setup(app: Any) -> None:
    """Put the generated parts into the pages as they are read."""

    def fill(app: Any, name: str, source: list[str]) -> None:
        source[0] = filled(source[0])

    app.connect("source-read", fill)
