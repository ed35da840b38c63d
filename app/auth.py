"""The admin token: who may change what is served."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from app.http.errors import Forbidden, NotAuthorized
from app.settings import Settings

__all__ = ["check_admin"]


def check_admin(settings: Settings, authorization: str | None, headers: Mapping[str, str]) -> None:
    """Raise NotAuthorized without a bearer token, Forbidden with a wrong one; without a token to check, Forbidden where
    a browser sends the request for a page of another site (which could reach a server on its user's machine).

    The comparison takes the same time wherever the tokens differ. `authorization` is the header's bytes as latin-1, as
    HTTP frameworks give it; the token is UTF-8.
    """
    if settings.admin_token is None:
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            raise Forbidden(f"a page of {origin[:100]} may not change what is served; set admin_token to allow it")
        return
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise NotAuthorized("this needs the header 'Authorization: Bearer <admin token>'")
    if not hmac.compare_digest(token.strip().encode("latin-1"), settings.admin_token.get_secret_value().encode()):
        raise Forbidden("the admin token is wrong")
