"""How Sphinx builds the manual: ``make docs``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tutelage.version import __version__

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
