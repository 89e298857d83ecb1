"""Formatting of numbers, durations and names for people."""

from __future__ import annotations

import math

from tutelage.evaluation.intervals import Figure, Interval

NONE = "–"
_MINUS = "−"


def known(value: Figure) -> bool:
    """Whether the value is a number: neither None nor NaN."""
    return value is not None and math.isfinite(value)


def percent(value: Figure, digits: int = 1) -> str:
    """A share times 100, without a percent sign: ``51.3``."""
    return f"{100 * value:.{digits}f}".replace("-", _MINUS) if value is not None and known(value) else NONE


def signed(value: Figure, digits: int = 1) -> str:
    """A difference of shares times 100, with its sign; without a sign where it rounds to 0."""
    if value is None or not known(value):
        return NONE
    text = f"{abs(100 * value):.{digits}f}"
    if not float(text):
        return text
    return ("+" if value > 0 else _MINUS) + text


def interval(given: Interval | None, digits: int = 1, sign: bool = False) -> str:
    """``[50.1, 53.9]``; empty where there is none."""
    if given is None or not (known(given.low) and known(given.high)):
        return ""
    form = signed if sign else percent
    return f"[{form(given.low, digits)}, {form(given.high, digits)}]"


def magnitude(value: Figure) -> str:
    """A count in thousands, millions or billions: ``3.41 M``."""
    if value is None or not known(value):
        return NONE
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{significant(value / size)}{unit}"
    return f"{value:.0f}"


def significant(value: Figure, digits: int = 3) -> str:
    """A number with ``digits`` significant digits; exponents only below 1e-4 and from 1e7 on."""
    if value is None or not known(value):
        return NONE
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}".replace("-", _MINUS)
    exponent = math.floor(math.log10(abs(value)))
    return f"{value:.{max(digits - 1 - exponent, 0)}f}".replace("-", _MINUS)


def duration(seconds: Figure) -> str:
    """``48 s``, ``4 min 10 s``, ``3 h 05 min``."""
    if seconds is None or not known(seconds):
        return NONE
    if seconds < 60:
        return f"{significant(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}".replace(",", "\u202f")


def memory(mebibytes: Figure) -> str:
    """``812 MiB``, ``2.16 GiB``."""
    if mebibytes is None or not known(mebibytes):
        return NONE
    return f"{significant(mebibytes)} MiB" if mebibytes < 1000 else f"{significant(mebibytes / 1024)} GiB"


def ratio(value: Figure, reference: Figure) -> str:
    """The value relative to the reference: ``×2.4``; empty where one of them is missing or the reference is 0."""
    if value is None or reference is None or not (known(value) and known(reference)) or reference == 0:
        return ""
    return f"×{significant(value / reference, 2)}"


def short(name: str, longest: int = 22) -> str:
    """A name, shortened in its middle: names differ at their ends."""
    if len(name) <= longest:
        return name
    tail = longest // 3
    return f"{name[: longest - tail - 1]}…{name[-tail:]}"
