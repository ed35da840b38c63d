"""The report of a version: JSON, or a page where a browser asks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Response

from app.http.errors import OK, BadRequest, NotFound
from app.http.schemas import described
from app.reports import Reports
from app.serving.errors import UnknownModel

__all__ = ["report_routes"]

_JSON, _HTML = "application/json", "text/html"
_PAGE_HEADERS = {
    # the page is drawn from what a compile said of a model that is not trusted: nothing of it may run or be fetched
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_CONTENT: dict[str, Any] = {_JSON: {"schema": {"type": "object"}}, _HTML: {"schema": {"type": "string"}}}
Format = Literal["json", "html"]


def report_routes(reports: Reports) -> APIRouter:
    """Needs no token, as metadata does not."""
    router = APIRouter(responses={**described(BadRequest, UnknownModel), OK: {"content": _CONTENT}})

    @router.get("/v2/models/{model}/versions/{version}/report", tags=["builds"], response_class=Response)
    async def report(
        model: Annotated[str, Path(description="Model name.")],
        version: Annotated[str, Path(pattern="^[0-9]{1,18}$", description="Version number.")],
        format: Annotated[Format | None, Query(description="Instead of what Accept prefers.")] = None,
        accept: str = Header(_JSON),
    ) -> Response:
        """What was read, changed, compared and measured when this version was built; a page with Accept: text/html."""
        as_page = format == "html" if format is not None else prefers_html(accept)
        found = await (reports.page if as_page else reports.document)(model, int(version))
        if found is None:
            raise NotFound(f"there is no {'page of a ' if as_page else ''}report of '{model}' version {version}")
        headers = {**_PAGE_HEADERS, "vary": "accept"}
        return Response(found, headers=headers, media_type=_HTML if as_page else _JSON)

    return router


def prefers_html(accept: str) -> bool:
    """Whether an Accept header (RFC 9110, 12.5.1) wants a page more than JSON; of equals, JSON."""
    return _quality(accept, _HTML) > _quality(accept, _JSON)


def _quality(accept: str, kind: str) -> float:
    """Of the most specific range that matches; 0 where none does."""
    ranges = [kind, f"{kind.partition('/')[0]}/*", "*/*"]
    found: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        quality = next((value for word in parameters if word.startswith("q=") and (value := word[2:])), "1")
        if name in ranges:
            found[name] = _number(quality)
    return next((found[name] for name in ranges if name in found), 0.0)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
