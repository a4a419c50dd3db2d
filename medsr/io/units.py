"""Lengths of file headers to micrometers; what may count as a spacing and what is a placeholder."""

from __future__ import annotations

import math
import unicodedata

__all__ = ["micrometers", "print_spacing_um", "stated_spacing_um"]

INCH_UM = 25_400.0
SMALLEST_UM, LARGEST_UM = 1e-5, 2e4
# What writers put where nothing was measured: screens, printers, and the settings of image editors.
PLACEHOLDER_DPI = (1, 72, 96, 150, 200, 240, 300, 400, 600, 1200, 2400)

_SYMBOLS = {  # case matters: "Mm" is a megameter, "Pm" a petameter
    "km": 1e9, "m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "um": 1.0, "nm": 1e-3, "pm": 1e-6,
    "Å": 1e-4, "in": INCH_UM, '"': INCH_UM, "ft": 12 * INCH_UM, "thou": INCH_UM / 1000, "pt": INCH_UM / 72,
}  # fmt: skip
_WORDS = {
    "kilometer": 1e9, "meter": 1e6, "decimeter": 1e5, "centimeter": 1e4, "millimeter": 1e3, "micrometer": 1.0,
    "micron": 1.0, "nanometer": 1e-3, "picometer": 1e-6, "angstrom": 1e-4, "inch": INCH_UM, "inche": INCH_UM,
    "foot": 12 * INCH_UM,
}  # fmt: skip


def micrometers(unit: str | None) -> float | None:
    """Micrometers in one `unit` as OME, ImageJ or UDUNITS spell it ("µm", "\\u00B5m", "micron", "millimetre", "in").

    None for what is no length a file can be calibrated in: "pixel", "reference frame", "", a word not known.
    """
    text = unicodedata.normalize("NFKC", (unit or "").replace("\\u00B5", "µ").replace("\\u00b5", "µ")).strip()
    symbol = text.replace("μ", "u")
    if symbol in _SYMBOLS:
        return _SYMBOLS[symbol]
    word = text.casefold().replace("metre", "meter")
    return _WORDS.get(word, _WORDS.get(word.removesuffix("s")))


def stated_spacing_um(value: object, unit_um: float | None) -> float | None:
    """A spacing the file states in so many words, in micrometers; None where it is no number, has no unit, is not
    above zero, or lies outside 0.01 nm to 20 mm."""
    try:
        spacing = float(str(value)) * (unit_um if unit_um is not None else math.nan)
    except ValueError:
        return None
    return spacing if SMALLEST_UM <= spacing <= LARGEST_UM else None


def print_spacing_um(samples: float, unit_um: float | None) -> float | None:
    """Spacing from a print resolution of `samples` per unit (TIFF tags, PNG pHYs) in micrometers.

    None where it cannot be a measurement: no unit, not above zero, a resolution of screens and printers (1, 72, 96,
    150, 200, 240, 300, 400, 600, 1200, 2400 dots per inch, or the same per cm, also rounded to whole numbers),
    exactly one sample per unit, or a spacing outside 0.1 nm to 1 mm.
    """
    if unit_um is None or not math.isfinite(samples) or samples <= 0 or samples == 1:
        return None
    spacing = unit_um / samples
    for known in PLACEHOLDER_DPI:
        if math.isclose(INCH_UM / spacing, known, rel_tol=2e-3) or samples == round(known * unit_um / INCH_UM):
            return None
    return spacing if 1e-4 <= spacing <= 1e3 else None
