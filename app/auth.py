"""The admin token: who may change what is served."""

from __future__ import annotations

import hmac

from app.http.errors import Forbidden, NotAuthorized
from app.settings import Settings

__all__ = ["check_admin"]


def check_admin(settings: Settings, authorization: str | None) -> None:
    """Raise NotAuthorized without a bearer token, Forbidden with a wrong one; nothing if no token is set.

    The comparison takes the same time wherever the tokens differ. `authorization` is the header's bytes as latin-1, as
    HTTP frameworks give it; the token is UTF-8.
    """
    if settings.admin_token is None:
        return
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise NotAuthorized("this needs the header 'Authorization: Bearer <admin token>'")
    if not hmac.compare_digest(token.strip().encode("latin-1"), settings.admin_token.get_secret_value().encode()):
        raise Forbidden("the admin token is wrong")
