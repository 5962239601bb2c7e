"""API keys, shown once and stored as a hash, and the authentication of requests.

Guarantee 1: the tenant of a request is the tenant of its key. While the catalog cannot be reached,
a key that was looked up recently may still read for a bounded time. An answer of the catalog always
prevails.
"""

import hashlib
import hmac
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final, get_args

from sqlalchemy import Engine, insert, select, update

from tenants import tables
from tenants.changes import Change, changing
from tenants.entities import Key, Principal, Scope
from vicinage.catalog import look, unreachable
from vicinage.clock import Clock
from vicinage.errors import Conflict, Forbidden, NotFound, Refused, Unauthenticated, Unavailable

FRESH_S: Final = 1.0
"""Lifetime of a cached lookup, with or without a result: a revoked key may work for this long."""
GRACE_S: Final = 60.0
"""Time after its last lookup for which a key may read while the catalog is unreachable."""
CACHE_MAX: Final = 10_000
"""Largest number of cached keys, and of cached unknown ids."""
_FORM: Final = re.compile(r"vk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class _Known:
    """A key as the catalog returned it at `looked_up_s`."""

    looked_up_s: float
    key: Key
    digest: str
    state: str


class Keys:
    """Keys of all tenants and operators. Safe for many threads."""

    def __init__(self, engine: Engine, clock: Clock, *, grace_s: float = GRACE_S) -> None:
        self._engine = engine
        self._clock = clock
        self._grace_s = grace_s
        self._cache: dict[str, _Known] = {}
        self._unknown: OrderedDict[str, float] = OrderedDict()
        """Ids that are not in the catalog, with the time of the lookup, oldest first.

        Ids are never reused.
        """
        self._answers = 0
        """Number of lookups that the catalog has answered."""
        self._retry_s = 0.0
        """The catalog is not queried before this time, because it was unreachable."""
        self._lock = threading.Lock()

    def create(
        self,
        tenant: str | None,
        scopes: Iterable[Scope],
        *,
        expires_ms: int | None = None,
        actor: str,
    ) -> tuple[Key, str]:
        """Creates a key; returns it and its text, which is not stored: show it once.

        `tenant` None creates an operator's key.
        """
        wanted = frozenset(scopes)
        if not wanted or wanted - set(get_args(Scope)):
            raise Refused(f"scopes are among {', '.join(get_args(Scope))}", field="scopes")
        if ("operate" in wanted) != (tenant is None) or (tenant is None and len(wanted) > 1):
            raise Refused(
                "an operator's key has only the scope operate, and no tenant; a tenant's key has "
                "read, write or both",
                field="scopes",
            )
        if expires_ms is not None and expires_ms <= self._clock.now_ms():
            raise Refused("expires is not in the future", field="expires")
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
        """Returns the principal of the key.

        Raises Unauthenticated; Forbidden if the key lacks `scope` or its tenant is suspended; and
        Unavailable if the catalog cannot be reached and the key may not be used without it (see
        `_without_catalog`).
        """
        form = _FORM.fullmatch(text or "")
        if form is None:
            raise Unauthenticated("send an API key: Authorization: Bearer vk_…")
        known = self._lookup(form[1], scope)
        key, state = known.key, known.state
        if not hmac.compare_digest(known.digest, _digest(form[2])):
            raise Unauthenticated("this key is not known")
        if state == "deleted":  # checked before "revoked": its keys must look unknown
            raise Unauthenticated("this key is not known")
        if key.revoked_ms is not None or (
            key.expires_ms is not None and key.expires_ms <= self._clock.now_ms()
        ):
            raise Unauthenticated("this key was revoked or has expired")
        if state == "suspended":
            raise Forbidden("this tenant is suspended; ask an operator")
        if scope not in key.scopes:
            raise Forbidden(
                f"this key has {', '.join(sorted(key.scopes))}; the request needs {scope}"
            )
        return Principal(key.id, key.tenant, key.scopes)

    def remembers(self, text: str | None) -> bool:
        """Returns whether `authenticate` of this text needs no I/O now."""
        form = _FORM.fullmatch(text or "")
        found = self._cache.get(form[1]) if form else None
        now = self._clock.monotonic()
        return (
            form is None
            or now < self._retry_s
            or (found is not None and now - found.looked_up_s < FRESH_S)
            or self._is_unknown(form[1], now)
        )

    def look_up(self, ids: Sequence[str]) -> None:
        """Looks up all of these keys in one query, and caches them. Raises Unavailable."""
        self._query(ids, self._clock.monotonic())

    def list(self, tenant: str | None = None) -> tuple[Key, ...]:
        """Returns the keys of a tenant, or all keys, without their secrets."""
        query = select(tables.keys).order_by(tables.keys.c.created_ms)
        if tenant is not None:
            query = query.where(tables.keys.c.tenant == tenant)
        with look(self._engine) as connection:
            return tuple(_key(row) for row in connection.execute(query).mappings())

    def revoke(self, key_id: str, *, actor: str) -> Key:
        """Revokes a key; after FRESH_S no process accepts it.

        Raises NotFound, and Conflict for the last key of operators.
        """
        k = tables.keys
        with changing(self._engine, self._clock, actor) as at:
            row = at.connection.execute(select(k).where(k.c.id == key_id)).mappings().first()
            if row is None:
                raise NotFound(f"there is no key {key_id!r}")
            if row["tenant"] is None and row["revoked_ms"] is None and not _others(at, key_id):
                raise Conflict(
                    "this is the last key of operators: create another one first (key create "
                    "--scopes operate)"
                )
            at.connection.execute(update(k).where(k.c.id == key_id).values(revoked_ms=at.now_ms))
            at.note("key.revoke", f"{row['tenant'] or 'operator'}/{key_id}")
        self._cache.pop(key_id, None)
        return replace(_key(row), revoked_ms=at.now_ms)

    def _lookup(self, key_id: str, scope: Scope) -> _Known:
        now = self._clock.monotonic()
        known = self._cache.get(key_id)
        if known and now - known.looked_up_s < FRESH_S:
            return known
        if self._is_unknown(key_id, now):
            raise Unauthenticated("this key is not known")
        if now < self._retry_s:
            return self._without_catalog(known, scope)
        answers = self._answers
        try:
            found = self._query([key_id], now).get(key_id)
        except Unavailable as error:
            if not unreachable(error) or self._answers != answers:
                raise  # the catalog is reachable: it answered other lookups meanwhile
            self._retry_s = self._clock.monotonic() + FRESH_S
            return self._without_catalog(self._cache.get(key_id), scope)
        if found is None:
            raise Unauthenticated("this key is not known")
        return found

    def _is_unknown(self, key_id: str, now: float) -> bool:
        looked_up_s = self._unknown.get(key_id)
        return looked_up_s is not None and now - looked_up_s < FRESH_S

    def _query(self, ids: Sequence[str], now: float) -> dict[str, _Known]:
        """Looks up these keys, caches the results, and returns those that exist.

        Raises Unavailable.
        """
        k, t = tables.keys, tables.tenants
        query = select(k, t.c.state).outerjoin(t, t.c.name == k.c.tenant).where(k.c.id.in_(ids))
        with look(self._engine) as connection:
            rows = connection.execute(query).mappings().all()
        found = {
            row["id"]: _Known(now, _key(row), str(row["sha256"]), str(row["state"] or "active"))
            for row in rows
        }
        with self._lock:
            self._answers += 1
            self._retry_s = 0.0
            for key_id in ids:
                self._remember(key_id, found.get(key_id), now)
        return found

    def _remember(self, key_id: str, known: _Known | None, now: float) -> None:
        if known is None:
            self._cache.pop(key_id, None)
            self._unknown[key_id] = now
            self._unknown.move_to_end(key_id)
            if len(self._unknown) > CACHE_MAX:
                self._unknown.popitem(last=False)
            return
        self._unknown.pop(key_id, None)
        if len(self._cache) >= CACHE_MAX:
            self._cache.clear()
        # a late answer never replaces a newer one
        if key_id not in self._cache or self._cache[key_id].looked_up_s <= now:
            self._cache[key_id] = known

    def _without_catalog(self, known: _Known | None, scope: Scope) -> _Known:
        """Returns the cached key, valid only for reads and for `grace_s` after its lookup.

        Raises Unavailable otherwise. NOTE: the cache has only what the catalog returned, so a
        refused key stays refused.
        """
        if (
            scope == "read"
            and known
            and self._clock.monotonic() - known.looked_up_s < self._grace_s
        ):
            return known
        raise Unavailable(
            "the catalog is unavailable, and this key cannot be checked without it",
            dependency="catalog",
        )


def key_id(text: str | None) -> str | None:
    """Returns the id in a key's text, or None if the text is not a key."""
    form = _FORM.fullmatch(text or "")
    return form[1] if form else None


def _others(at: Change, key_id: str) -> bool:
    """Returns whether operators have another valid key."""
    k = tables.keys.c
    alive = (
        k.tenant.is_(None)
        & k.revoked_ms.is_(None)
        & (k.expires_ms.is_(None) | (k.expires_ms > at.now_ms))
    )
    return (
        at.connection.execute(select(k.id).where(alive & (k.id != key_id)).limit(1)).first()
        is not None
    )


def _key(row: object) -> Key:
    r = dict(row)  # type: ignore[call-overload]  # SQLAlchemy's RowMapping
    scopes: frozenset[Scope] = frozenset(r["scopes"].split(","))
    return Key(r["id"], r["tenant"], scopes, r["created_ms"], r["expires_ms"], r["revoked_ms"])


def _digest(secret: str) -> str:
    # The secret is 256 random bits: a plain hash is safe from brute force, and takes 1 µs per
    # request.
    return hashlib.sha256(secret.encode()).hexdigest()
