"""Panels of Grafana dashboards, in few words: a title, what it shows, a unit, and queries with their legends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Panel", "dashboard"]

_COLUMNS = 24
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_VALUES = {"calcs": ["lastNotNull"], "fields": "", "values": False}


@dataclass(frozen=True)
class Panel:
    """`queries` are (PromQL, legend); `unit` is one of Grafana's ids. `width` of 24 columns."""

    title: str
    description: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    most: float | None = None

    def json(self, number: int, x: int, y: int) -> dict[str, Any]:
        """The panel at a place."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": _SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [self._target(at, *query) for at, query in enumerate(self.queries)],
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": self._options(),
        }

    def _target(self, at: int, expr: str, legend: str) -> dict[str, Any]:
        return {
            "refId": chr(ord("A") + at),
            "datasource": _SOURCE,
            "editorMode": "code",
            "expr": expr,
            "legendFormat": legend,
            "format": "heatmap" if self.kind == "heatmap" else "time_series",
            "range": self.kind != "stat",
            "instant": self.kind == "stat",
        }

    def _defaults(self) -> dict[str, Any]:
        found: dict[str, Any] = {"unit": self.unit, "min": 0}
        if self.most is not None:
            found["max"] = self.most
        if self.kind == "timeseries":
            stacking = {"mode": "normal" if self.stacked else "none", "group": "A"}
            fill = 30 if self.stacked else 5
            found["custom"] = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": fill, "stacking": stacking}
        return found

    def _options(self) -> dict[str, Any]:
        if self.kind == "stat":
            return {"reduceOptions": _VALUES, "colorMode": "value", "graphMode": "none", "textMode": "auto"}
        if self.kind == "heatmap":
            return {
                "calculate": False,
                "cellGap": 1,
                "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
                "yAxis": {"unit": self.unit, "axisPlacement": "left"},
                "tooltip": {"show": True, "yHistogram": False},
            }
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }


def dashboard(uid: str, title: str, description: str, variables: dict[str, str], panels: list[Panel]) -> dict[str, Any]:
    """A whole one. `variables` are names and the queries that list their values; panels flow from left to right."""
    placed, x, y, line = [], 0, 0, 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > _COLUMNS:
            x, y, line = 0, y + line, 0
        placed.append(panel.json(number, x, y))
        x, line = x + panel.width, max(line, panel.height)
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["bitserve"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source(), *(_variable(*one) for one in variables.items())]},
        "panels": placed,
    }


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1}


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
