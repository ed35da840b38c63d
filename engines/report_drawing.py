"""How figures of a report are drawn: SVG for one HTML page, its fonts and colours, the same bytes each time."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = [
    "ACCENT", "BAD", "CARD", "GOOD", "INK", "LINE", "MUTED", "POINTS", "ROW_IN", "Bar", "Figure", "bar_figure",
    "draw_bars", "draw_figure", "duration",
]  # fmt: skip

INK, MUTED, LINE, ACCENT = "#010203", "#010204", "#010205", "#010206"
BAD, GOOD, CARD = "#010207", "#010208", "#010209"
_VARIABLES = {
    INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", BAD: "--bad", GOOD: "--good", CARD: "--card",
}  # fmt: skip
"""Colours stand for variables of the page, so that light and dark need one drawing."""
_WIDTH_IN, ROW_IN, POINTS = 4.4, 0.46, 10.5
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: readable by machines, in the page's own font
    "svg.hashsalt": "bitserve",
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": POINTS,
    "axes.edgecolor": LINE, "axes.labelcolor": MUTED, "axes.linewidth": 0.8,
    "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "text.color": INK, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


class Figure(NamedTuple):
    """An SVG element, and what it shows in words."""

    svg: str
    says: str


class Bar(NamedTuple):
    label: str
    value: float
    text: str


def bar_figure(name: str, bars: list[Bar], says: str) -> Figure | None:
    """One bar under the other; None for none."""
    if not bars:
        return None
    return draw_figure(name, lambda drawing: draw_bars(drawing.subplots(), bars), len(bars) * ROW_IN + 0.1, says)


def draw_bars(axes: Axes, bars: list[Bar]) -> None:
    """One thin bar under its label, its value at the right: names may be long and the page narrow."""
    longest = max(bar.value for bar in bars) or 1.0
    for place, bar in enumerate(bars):
        axes.barh(place + 0.34, bar.value / longest, height=0.2, color=ACCENT)
        axes.barh(place + 0.34, 1, height=0.2, color=LINE, zorder=0)
        axes.text(0, place - 0.02, _printable(bar.label), va="center")
        axes.text(1, place - 0.02, bar.text, va="center", ha="right", color=MUTED)
    axes.set(xlim=(0, 1), ylim=(len(bars) - 0.5, -0.35))
    axes.set_axis_off()


def draw_figure(name: str, draw: Callable[[Drawing], None], height_in: float, says: str) -> Figure:
    """What `draw` puts into a drawing of this height. `name` tells its ids from those of the page's other figures;
    `says` is read aloud, and has no sign that means something in HTML.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever settings of a user lie about
        matplotlib.rcParams.update(_SETTINGS)
        drawing = Drawing(figsize=(_WIDTH_IN, height_in), layout="constrained")
        FigureCanvasSVG(drawing)
        draw(drawing)
        written = io.StringIO()
        drawing.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Figure(_as_element(written.getvalue(), name, says), says)


def _as_element(svg: str, name: str, says: str) -> str:
    """The bare element: no prolog, no size of its own, ids that do not clash with another figure's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{says}"', 1)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.strip()


def _printable(text: str) -> str:
    """ASCII of a bounded length: a glyph that the measuring font lacks would be warned of."""
    clean = "".join(sign if " " <= sign <= "~" else "?" for sign in text)
    return clean if len(clean) <= 34 else f"{clean[:33]}~"


def duration(us: float) -> str:
    """Microseconds in the unit that suits them."""
    return f"{us:.0f} \u00b5s" if us < 1000 else f"{us / 1000:.2f} ms" if us < 1e6 else f"{us / 1e6:.2f} s"
