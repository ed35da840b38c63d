"""The admin token: who may change what is served."""

from __future__ import annotations

import hmac
import secrets
import sys

from pydantic import SecretStr

from app.http.errors import Forbidden, NotAuthorized
from app.settings import Settings

__all__ = ["check_admin", "with_admin_token"]


def with_admin_token(settings: Settings) -> Settings:
    """The settings with a token to check: theirs, else one made now, told once on stderr and nowhere else."""
    if settings.admin_token is not None:
        return settings
    token = secrets.token_urlsafe(24)
    print(f"bitserve: admin token of this run: {token} (set BITSERVE_ADMIN_TOKEN to choose one)", file=sys.stderr)
    return settings.model_copy(update={"admin_token": SecretStr(token)})


def check_admin(settings: Settings, authorization: str | None) -> None:
    """Raise NotAuthorized without a bearer token, Forbidden with a wrong one.

    The comparison takes the same time wherever the tokens differ. `authorization` is the header's bytes as latin-1, as
    HTTP frameworks give it; the token is UTF-8.
    """
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip() or settings.admin_token is None:
        raise NotAuthorized("this needs the header 'Authorization: Bearer <admin token>'")
    if not hmac.compare_digest(token.strip().encode("latin-1"), settings.admin_token.get_secret_value().encode()):
        raise Forbidden("the admin token is wrong")
