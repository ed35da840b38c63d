"""A report as one HTML page that needs nothing else: no script, no network. Whatever a model's file says stays text."""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jinja2

from engines.report import Layer, Report
from engines.report_candidates import axis_of, chosen_of, is_coarse, is_elsewhere, places, shown
from engines.report_figures import figures

__all__ = ["page"]

_MOST_LAYERS = 3000
_MOST_NAMES = 200
_LONGEST = 240
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, signs that turn the direction of writing, halves of surrogate pairs."""


@dataclass(frozen=True)
class _Kernel:
    """All operations that run the same code."""

    kernel: str
    precision: str
    op_types: str
    count: int
    time_us: float | None


def page(report: Report) -> str:
    """The whole page. Pure: the same report gives the same text."""
    drawn = {name: figure.svg for name, figure in figures(report).items()}
    return _template().render(
        r=report, figures=drawn, kernels=_kernels(report.layers), layers=report.layers[:_MOST_LAYERS],
        saved=sum(layer.weight_bytes_saved for layer in report.layers),
        hidden=max(0, len(report.layers) - _MOST_LAYERS), full=report.speeds[-1] if report.speeds else None,
        passed=any(candidate.passed for candidate in report.candidates), **_search(report),
    )  # fmt: skip


def _search(report: Report) -> dict[str, Any]:
    """What the page tells of the engines that were tried."""
    return {
        "chosen": chosen_of(report),
        "coarse": is_coarse(report),
        "coarse_bound": _percent(report.accuracy.tolerance),
        "tried": shown(report),
        "axis": axis_of(report),
        "undrawn": len(report.candidates) - len(places(report)),
        "most_names": _MOST_NAMES,
        "is_elsewhere": functools.partial(is_elsewhere, report),
    }


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("engines", "."), autoescape=True, finalize=_clean, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters.update(
        size=_size,
        duration=_duration,
        number=_number,
        counts=_counts,
        json=_json,
        metric=_metric,
        brief=_brief,
        signed=_signed,
    )
    return environment.get_template("report_page.html")


def _clean(value: Any) -> Any:
    """Every value that goes into the page; what is markup already (our figures) passes."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    text = _UNPRINTABLE.sub("\ufffd", value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 40]} \u2026 {text[-30:]}"


def _kernels(layers: Iterable[Layer]) -> list[_Kernel]:
    """By kernel and precision, the longest time first, then the most operations."""
    groups: defaultdict[tuple[str, str], list[Layer]] = defaultdict(list)
    for layer in layers:
        groups[layer.kernel, layer.precision].append(layer)
    found = [_kernel(*key, members) for key, members in groups.items()]
    return sorted(found, key=lambda group: (-(group.time_us or 0.0), -group.count, group.kernel))


def _kernel(kernel: str, precision: str, layers: list[Layer]) -> _Kernel:
    times = [layer.time_us for layer in layers if layer.time_us is not None]
    op_types = ", ".join(sorted({layer.op_type for layer in layers}))
    return _Kernel(kernel, precision, op_types, len(layers), sum(times) if times else None)


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _duration(us: float | None) -> str:
    if us is None:
        return "\u2013"
    return f"{us:,.0f} \u00b5s" if us < 1000 else f"{us / 1000:,.2f} ms" if us < 1e6 else f"{us / 1e6:,.2f} s"


def _number(value: float | None) -> str:
    """Four significant digits, thousands apart."""
    if value is None:
        return "\u2013"
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4g}"


def _metric(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.6g}"


def _brief(value: float) -> str:
    return f"{value:.3g}"


def _signed(value: float | None) -> str:
    """Three significant digits; what is not told is a dash."""
    return "\u2013" if value is None else f"{value:.3g}".replace("-", "\u2212")


def _percent(share: float | None) -> str:
    return "the bound" if share is None else f"{100 * share:.3g} %"


def _counts(operators: dict[str, int]) -> str:
    return ", ".join(f"{name} \u00d7 {count}" if count > 1 else name for name, count in operators.items())


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
