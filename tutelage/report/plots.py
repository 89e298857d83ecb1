"""Charts as inline SVG, which use the page's colours, light or dark, and its font.

Each chart is about as wide as a phone, so that its text is never shrunk; the page places them side by side. Lines
differ in dashes and colour. All text from outside is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from tutelage.evaluation.intervals import Gain
from tutelage.report.content import Points, Reliability
from tutelage.report.formatting import known, percent, short, signed

STYLES = 6
"""Number of line colours in the style sheet."""

_MOST_POINTS = 240
_LONGEST_TICK = 6
_LOG_FROM = 50.0
"""Smallest ratio of largest to smallest value for a logarithmic loss axis."""


@dataclass(frozen=True)
class Line:
    """One curve; ``style``: the number of its colour and dashes."""

    name: str
    points: Points
    style: int = 0


@dataclass(frozen=True)
class Frame:
    """The plotting area of a chart, in units of the view box, and the values at its edges."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False

    def across(self, value: float) -> float:
        """Horizontal position of a value."""
        low, high = self.x
        return self.left + self.width * (value - low) / (high - low)

    def up(self, value: float) -> float:
        """Vertical position of a value."""
        low, high, value = (math.log10(v) if self.log else v for v in (*self.y, value))
        return self.top + self.height * (1 - (value - low) / (high - low))


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """About ``about`` round numbers within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * number, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], with 2s and 5s where there would be fewer than three."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        result = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(result) >= 3:
            return result[:: max(1, len(result) // 5)]
    return ticks(low, high)


def thinned(points: Points, most: int = _MOST_POINTS) -> Points:
    """A curve of at most ``most`` points, neighbours averaged; values that are not finite are omitted."""
    finite = tuple((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))
    if len(finite) <= most:
        return finite
    edges = [round(i * len(finite) / most) for i in range(most + 1)]
    parts = [finite[start:stop] for start, stop in pairwise(edges)]
    return tuple((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts)


def line_chart(
    lines: Sequence[Line],
    about: str,
    *,
    scale: float = 1.0,
    log: bool = False,
    from_zero: bool = False,
    mark: tuple[float, str] | None = None,
    dots: bool = False,
) -> Markup:
    """Curves against the step; ``about``: the text alternative. Empty where no curve has a point.

    ``scale`` multiplies the values, ``log`` allows a logarithmic axis, ``mark`` is a step to mark, ``dots``
    marks every point.
    """
    curves = [(line, tuple((x, scale * y) for x, y in thinned(line.points))) for line in lines]
    points = [point for _, curve in curves for point in curve]
    if not points:
        return Markup("")
    low, high = min(y for _, y in points), max(y for _, y in points)
    log = log and low > 0 and high / low >= _LOG_FROM
    if log:
        low, high = low / 1.15, high * 1.15
        y_ticks = log_ticks(low, high)
    else:
        low = min(0.0, low) if from_zero else low
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        low, high = (low if from_zero else low - room), high + room
        y_ticks = ticks(low, high)
    last = max(x for x, _ in points)
    frame = Frame(50, 8, 300, 150, (min(0.0, min(x for x, _ in points)), max(last, 1.0)), (low, high), log)
    parts = [*_axes(frame, ticks(*frame.x), y_ticks), _text(350, 190, "step", "end")]
    if mark is not None and frame.x[0] <= mark[0] <= frame.x[1]:
        place = frame.across(mark[0])
        anchor = "end" if place > frame.left + frame.width / 2 else "start"
        parts.append(_rule(place, frame.top, place, frame.top + frame.height, "mark"))
        parts.append(_text(place + (-5 if anchor == "end" else 5), frame.top + frame.height - 6, mark[1], anchor))
    for line, curve in curves:
        parts += _curve(frame, line, curve, dots or len(curve) == 1)
    return _svg(360, 196, about, parts)


def _curve(frame: Frame, line: Line, curve: Points, dots: bool) -> Iterator[Markup]:
    places = [(frame.across(x), frame.up(y)) for x, y in curve]
    style = f"l{line.style % STYLES}"
    if len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield Markup('<polyline class="line {}" points="{}"><title>{}</title></polyline>').format(
            style, path, line.name
        )
    for x, y in places if dots else []:
        yield Markup('<circle class="dot {}" cx="{}" cy="{}" r="2.6"/>').format(style, f"{x:.1f}", f"{y:.1f}")


def reliability_chart(curve: Reliability, about: str, role: str) -> Markup:
    """Accuracy against confidence: a bar per bin, the diagonal, and the pixels of each bin in a strip below.

    ``role`` (``student``, ``baseline``, ``teacher``, ``other``) gives the colour.
    """
    frame = Frame(44, 8, 200, 200, (0.0, 1.0), (0.0, 1.0))
    fifths = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    parts = list(_axes(frame, fifths, fifths, as_percent=True))
    bins = len(curve.count)
    total = sum(count for count in curve.count if count is not None and known(count)) or 1.0
    most = max((count or 0.0 for count in curve.count), default=0.0) or 1.0
    floor = frame.top + frame.height
    for number, (confidence, accuracy, count) in enumerate(
        zip(curve.confidence, curve.accuracy, curve.count, strict=True)
    ):
        if confidence is None or accuracy is None or not count or not (known(confidence) and known(accuracy)):
            continue
        left, width = frame.across(number / bins) + 0.75, frame.width / bins - 1.5
        top = frame.up(accuracy)
        text = f"confidence {percent(confidence)}: {percent(accuracy)} right, {percent(count / total)} % of the pixels"
        parts.append(_bar(left, top, width, floor - top, f"bar {role}", text))
        gap = frame.up(confidence)
        parts.append(_rule(left, gap, left + width, gap, "expected"))
        height = 30 * count / most
        parts.append(_bar(left, 282 - height, width, height, "count", text))
    parts.append(_rule(frame.left, floor, frame.left + frame.width, frame.top, "diagonal"))
    parts.append(_rule(frame.left, 282, frame.left + frame.width, 282, "axis"))
    parts.append(_text(144, 242, "confidence (%)", "middle"))
    parts.append(Markup('<text transform="translate(11 108) rotate(-90)" text-anchor="middle">right (%)</text>'))
    return _svg(256, 286, about, parts)


def gain_chart(comparison: Gain, about: str) -> Markup:
    """The gain as a dot, its interval as a bar, 0 as a line. Empty without an interval."""
    low, high, gain = comparison.interval.low, comparison.interval.high, comparison.gain
    if low is None or high is None or gain is None or not all(map(known, (low, high, gain))):
        return Markup("")
    least, most = min(0.0, low, gain), max(0.0, high, gain)
    room = (most - least) * 0.12 or 0.01
    frame = Frame(12, 6, 336, 34, (least - room, most + room), (0.0, 1.0))
    axis = frame.top + frame.height
    parts = [_rule(frame.left, axis, frame.left + frame.width, axis, "axis")]
    for tick in ticks(100 * frame.x[0], 100 * frame.x[1], 6):
        place = frame.across(tick / 100)
        parts.append(_rule(place, axis, place, axis + 4, "axis"))
        parts.append(_text(place, axis + 17, f"{signed(tick / 100, 1).removesuffix('.0')}", "middle"))
    zero = frame.across(0)
    parts.append(_rule(zero, frame.top - 4, zero, axis, "zero"))
    middle = frame.top + frame.height / 2
    parts.append(_rule(frame.across(low), middle, frame.across(high), middle, "whisker"))
    parts += [_rule(frame.across(end), middle - 6, frame.across(end), middle + 6, "whisker") for end in (low, high)]
    parts.append(Markup('<circle class="gain" cx="{}" cy="{}" r="5.5"/>').format(f"{frame.across(gain):.1f}", middle))
    return _svg(360, 62, about, parts)


@dataclass(frozen=True)
class GainRow:
    """One row of :func:`gains_chart`; ``tone`` is ``gain``, ``loss`` or ``open``."""

    name: str
    comparison: Gain
    tone: str


def gains_chart(gains: Sequence[GainRow], worth: float, about: str) -> Markup:
    """A dot with its interval for each name; lines at 0 and at ``worth``. Empty without an interval."""
    rows = [(gain, bounds) for gain in gains if (bounds := _bounds(gain.comparison)) is not None]
    if not rows:
        return Markup("")
    ends = [0.0, worth, *(end for _, bounds in rows for end in bounds)]
    room = (max(ends) - min(ends)) * 0.06 or 0.01
    height = 24 * len(rows)
    frame = Frame(118, 18, 330, height, (min(ends) - room, max(ends) + room), (0.0, 1.0))
    floor = frame.top + height
    parts = [_rule(frame.left, floor, frame.left + frame.width, floor, "axis")]
    for tick in ticks(100 * frame.x[0], 100 * frame.x[1], 6):
        place = frame.across(tick / 100)
        parts.append(_rule(place, floor, place, floor + 4, "axis"))
        parts.append(_text(place, floor + 17, f"{signed(tick / 100, 1).removesuffix('.0')}", "middle"))
    parts.append(_rule(frame.across(0), frame.top, frame.across(0), floor, "zero"))
    if worth > 0:
        place = frame.across(worth)
        parts.append(_rule(place, frame.top, place, floor, "mark"))
        parts.append(_text(place, 11, "pays", "middle"))
    for number, (gain, (low, middle, high)) in enumerate(rows):
        y = frame.top + 24 * number + 12
        parts.append(_text(frame.left - 8, y + 4, short(gain.name, 18), "end"))
        parts.append(_rule(frame.across(low), y, frame.across(high), y, f"whisker {gain.tone}"))
        parts.append(
            Markup('<circle class="gain {}" cx="{}" cy="{}" r="5"><title>{}</title></circle>').format(
                gain.tone, f"{frame.across(middle):.1f}", f"{y:.1f}", f"{gain.name}: {signed(middle, 2)}"
            )
        )
    return _svg(460, height + 42, about, parts)


def _bounds(comparison: Gain) -> tuple[float, float, float] | None:
    """Low end, gain and high end; ``None`` where one of them is missing."""
    values = (comparison.interval.low, comparison.gain, comparison.interval.high)
    low, gain, high = (value if value is not None and known(value) else None for value in values)
    return None if low is None or gain is None or high is None else (low, gain, high)


def _axes(
    frame: Frame, x_ticks: Iterable[float], y_ticks: Iterable[float], as_percent: bool = False
) -> Iterator[Markup]:
    floor, right = frame.top + frame.height, frame.left + frame.width
    for tick in y_ticks:
        place = frame.up(tick)
        yield _rule(frame.left, place, right, place, "grid")
        yield _text(frame.left - 6, place + 4, _number(tick, as_percent), "end")
    for tick in x_ticks:
        place = frame.across(tick)
        anchor = "end" if place > right - 8 and not as_percent else "middle"
        yield _rule(place, floor, place, floor + 4, "axis")
        yield _text(place, floor + 17, _number(tick, as_percent), anchor)
    yield _rule(frame.left, floor, right, floor, "axis")


def _number(value: float, as_percent: bool) -> str:
    if as_percent:
        return f"{100 * value:.0f}"
    plain = f"{value:.9f}".rstrip("0").rstrip(".")
    if len(plain) > _LONGEST_TICK or not float(plain):
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        plain = f"{mantissa.removesuffix('.0')}e{int(exponent)}" if value else "0"
    return plain.replace("-", "−")


def _svg(width: int, height: int, about: str, parts: Iterable[Markup]) -> Markup:
    return Markup('<svg class="chart" role="img" viewBox="0 0 {} {}" aria-label="{}">{}</svg>').format(
        width, height, about, Markup("").join(parts)
    )


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    places = (f"{place:.1f}" for place in (x1, y1, x2, y2))
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, *places)


def _bar(x: float, y: float, width: float, height: float, kind: str, text: str) -> Markup:
    places = (f"{place:.1f}" for place in (x, y, width, height))
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
        kind, *places, text
    )


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(f"{x:.1f}", f"{y:.1f}", anchor, text)
