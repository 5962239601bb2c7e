"""API keys: made once, shown once, stored as a hash; who is asking, as the key proves it.

Law 1: the tenant of a request is the tenant of its key.
"""

import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Final, get_args

from sqlalchemy import Engine, insert, select, update

from tenants import tables
from tenants.entities import Key, Principal, Scope
from tenants.registry import changing
from vicinage.catalog import look
from vicinage.clock import Clock
from vicinage.errors import Forbidden, NotFound, Refused, Unauthenticated

FRESH_S: Final = 1.0
"""A revoked key may work this much longer: the time for which a looked-up key is remembered."""
CACHE_MAX: Final = 10_000
_FORM: Final = re.compile(r"vk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


class Keys:
    """Keys of all tenants and operators. Safe for many threads."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._cache: dict[str, tuple[float, Key, str, str]] = {}
        self._lock = threading.Lock()

    def create(
        self, tenant: str | None, scopes: Iterable[Scope], *, expires_ms: int | None = None, actor: str
    ) -> tuple[Key, str]:
        """A new key and its text, which is not kept: show it once. `tenant` None makes an operator's key."""
        wanted = frozenset(scopes)
        if not wanted or wanted - set(get_args(Scope)):
            raise Refused(f"scopes are among {', '.join(get_args(Scope))}", field="scopes")
        if ("operate" in wanted) != (tenant is None) or (tenant is None and len(wanted) > 1):
            raise Refused(
                "an operator's key has the scope operate alone and no tenant; a tenant's has read, write or both",
                field="scopes",
            )
        if expires_ms is not None and expires_ms <= self._clock.now_ms():
            raise Refused("the key would be expired at once", field="expires")
        secret = secrets.token_urlsafe(32)
        with changing(self._engine, self._clock, actor) as at:
            if tenant is not None:
                t = tables.tenants
                known = at.connection.execute(
                    select(t.c.state).where(t.c.name == tenant, t.c.state != "deleted")
                ).first()
                if known is None:
                    raise NotFound(f"there is no tenant {tenant!r}")
            key = Key(secrets.token_hex(8), tenant, wanted, at.now_ms, expires_ms)
            row = {**asdict(key), "scopes": ",".join(sorted(wanted)), "sha256": _digest(secret)}
            at.connection.execute(insert(tables.keys).values(**row))
            at.note(
                "key.create",
                f"{tenant or 'operator'}/{key.id}",
                after={"scopes": sorted(wanted), "expires_ms": expires_ms},
            )
        return key, f"vk_{key.id}_{secret}"

    def authenticate(self, text: str | None, scope: Scope) -> Principal:
        """Whose key this is. Raises Unauthenticated, or Forbidden where the key lacks `scope` or its tenant is suspended."""
        form = _FORM.fullmatch(text or "")
        if form is None:
            raise Unauthenticated("send a key of yours: Authorization: Bearer vk_…")
        key, digest, state = self._lookup(form[1])
        if not hmac.compare_digest(digest, _digest(form[2])):
            raise Unauthenticated("this key is not known")
        if key.revoked_ms is not None or (key.expires_ms is not None and key.expires_ms <= self._clock.now_ms()):
            raise Unauthenticated("this key was revoked or has expired")
        if state == "deleted":
            raise Unauthenticated("this key is not known")
        if state == "suspended":
            raise Forbidden("this tenant is suspended; ask an operator")
        if scope not in key.scopes:
            raise Forbidden(f"this key has {', '.join(sorted(key.scopes))}; the request needs {scope}")
        return Principal(key.id, key.tenant, key.scopes)

    def remembers(self, text: str | None) -> bool:
        """True when `authenticate` of this text needs no I/O just now."""
        form = _FORM.fullmatch(text or "")
        found = self._cache.get(form[1]) if form else None
        return form is None or (found is not None and self._clock.monotonic() - found[0] < FRESH_S)

    def list(self, tenant: str | None = None) -> tuple[Key, ...]:
        """The keys of a tenant, or every key; without their secrets."""
        query = select(tables.keys).order_by(tables.keys.c.created_ms)
        if tenant is not None:
            query = query.where(tables.keys.c.tenant == tenant)
        with look(self._engine) as connection:
            return tuple(_key(row) for row in connection.execute(query).mappings())

    def revoke(self, key_id: str, *, actor: str) -> Key:
        """End a key; within FRESH_S it works nowhere. Raises NotFound."""
        k = tables.keys
        with changing(self._engine, self._clock, actor) as at:
            row = at.connection.execute(select(k).where(k.c.id == key_id)).mappings().first()
            if row is None:
                raise NotFound(f"there is no key {key_id!r}")
            at.connection.execute(update(k).where(k.c.id == key_id).values(revoked_ms=at.now_ms))
            at.note("key.revoke", f"{row['tenant'] or 'operator'}/{key_id}")
        self._cache.pop(key_id, None)
        return replace(_key(row), revoked_ms=at.now_ms)

    def _lookup(self, key_id: str) -> tuple[Key, str, str]:
        found = self._cache.get(key_id)
        if found and self._clock.monotonic() - found[0] < FRESH_S:
            return found[1:]
        k, t = tables.keys, tables.tenants
        query = select(k, t.c.state).outerjoin(t, t.c.name == k.c.tenant).where(k.c.id == key_id)
        with look(self._engine) as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise Unauthenticated("this key is not known")
        fresh = (self._clock.monotonic(), _key(row), str(row["sha256"]), str(row["state"] or "active"))
        with self._lock:
            if len(self._cache) >= CACHE_MAX:
                self._cache.clear()
            self._cache[key_id] = fresh
        return fresh[1:]


def _key(row: object) -> Key:
    r = dict(row)  # type: ignore[call-overload]  # SQLAlchemy's RowMapping
    scopes: frozenset[Scope] = frozenset(r["scopes"].split(","))
    return Key(r["id"], r["tenant"], scopes, r["created_ms"], r["expires_ms"], r["revoked_ms"])


def _digest(secret: str) -> str:
    # The secret is 256 random bits: a plain hash cannot be searched, and costs a microsecond per request.
    return hashlib.sha256(secret.encode()).hexdigest()
