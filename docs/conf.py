"""Sphinx: the pages of docs/ with the reference pages made from the code before each build; needs no network."""

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from generate import write_reference  # noqa: E402 - both live beside this file

from medsr.version import __version__  # noqa: E402

project = "medsr"
author = "the medsr developers"
copyright = "the medsr developers, Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
# Two rooms may each have an "Index" or "Array" of their own; a signature then names it without a link.
suppress_warnings = ["ref.python"]

html_theme = "pydata_sphinx_theme"
html_title = "medsr"
html_show_sourcelink = False
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}

CODE = re.compile(r"(``.+?``|`[^`]+`)")
SEVERAL = re.compile(r"^ {4,}\w+(?:, \w+)+:(?= )")  # "slope, intercept, units: what" is one entry of a list


def plain_docstrings(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings of the package are plain text with `code`; what reStructuredText would take for markup is escaped."""
    for number, line in enumerate(lines):
        line = SEVERAL.sub(lambda found: found[0].replace(", ", ","), line)
        bullet = re.match(r"\s*[*-] ", line)
        head, rest = (line[: bullet.end()], line[bullet.end() :]) if bullet else ("", line)
        parts = CODE.split(rest)
        for index, part in enumerate(parts):
            if index % 2:
                parts[index] = f"``{part.strip('`')}``"
            else:
                parts[index] = re.sub(r"([*|])", r"\\\1", re.sub(r"(?<=\w)_(?!\w)", r"\\_", part))
        lines[number] = head + "".join(parts)


def setup(app: Any) -> None:
    """Write docs/reference from the code as it is now."""
    app.connect("autodoc-process-docstring", plain_docstrings, priority=400)
    write_reference(HERE / "reference")
