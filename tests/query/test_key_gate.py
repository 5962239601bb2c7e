"""Failed keys: few queries for many, a limit for each address, and no effect on valid keys."""

import asyncio
import secrets
import time
from pathlib import Path
from typing import Any

import pytest
from gate import platform, problem

from query.key_gate import ADDRESSES_MAX, AT_ONCE, HOLD_S, Failures, KeyGate, network
from tenants.keys import Keys
from vicinage.errors import Corrupt, Overloaded, Unauthenticated
from vicinage.settings import GatewaySettings


def unknown() -> str:
    return f"vk_{secrets.token_hex(8)}_{secrets.token_urlsafe(32)}"


def test_an_address_can_fail_a_burst_and_then_at_its_rate() -> None:
    now = [0.0]
    failures = Failures(2.0, lambda: now[0])
    assert [failures.wait_s("a") for _ in range(20)] == [0.0] * 20
    assert failures.wait_s("a") == 0.5
    assert failures.wait_s("b") == 0.0, "another address is not limited"
    now[0] = 0.5
    assert failures.wait_s("a") == 0.0
    assert failures.wait_s("a") == 0.5


def test_addresses_that_are_remembered_are_bounded() -> None:
    failures = Failures(0.1, lambda: 0.0)
    assert failures.wait_s("first") == 0.0
    assert failures.wait_s("first") > 0
    for i in range(ADDRESSES_MAX):
        failures.wait_s(str(i))
    assert failures.wait_s("first") == 0.0, "the least recent one is evicted"


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_an_ipv6_address_counts_by_its_network(address: str, counted: str) -> None:
    assert network(address) == counted


class Counting:
    """The keys of a platform, with a count of their queries."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.queries = 0

    def look_up(self, ids: Any) -> None:
        self.queries += 1
        self._keys.look_up(ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._keys, name)


def test_many_unknown_keys_share_queries_and_a_valid_one_among_them_is_found(
    tmp_path: Path,
) -> None:
    async def ask(gate: KeyGate, key: str) -> list[Any]:
        every = [unknown() for _ in range(2 * AT_ONCE)]
        every.insert(AT_ONCE, key)
        return await asyncio.gather(
            *(gate.principal(k, "read", "1.2.3.4") for k in every), return_exceptions=True
        )

    with platform(tmp_path) as call:
        name, key = call.tenant()
        keys = Counting(Keys(call.base.engine, call.base.clock))
        found = asyncio.run(ask(KeyGate(keys, Failures(1.0, call.base.clock.monotonic)), key))
    assert found[AT_ONCE].tenant == name
    kinds = [type(f) for f in found if isinstance(f, Exception)]
    assert set(kinds) == {Unauthenticated, Overloaded}
    assert kinds.count(Unauthenticated) < 30
    assert keys.queries <= 4


def test_an_address_that_fails_too_often_gets_429_and_its_valid_keys_still_work(
    tmp_path: Path,
) -> None:
    with platform(tmp_path, GatewaySettings(key_failures_per_s=0.1)) as call:
        _, key = call.tenant()
        _, fresh = call.tenant()
        call.collection(key)
        problem(call("GET", "/v1/collections", unknown()), 401)
        for wrong in (unknown(), "nonsense", None, key[:-1] + ("A" if key[-1] != "A" else "B")):
            found = call("GET", "/v1/collections", wrong)
            assert problem(found, 429, "overloaded")["retry_after_s"] >= 1
            assert int(found.headers["retry-after"]) >= 1
        assert call("GET", "/v1/collections", key).status_code == 200
        assert call("GET", "/v1/collections", fresh).status_code == 200, "not seen here before"


def test_an_address_that_fails_too_often_is_kept_waiting(tmp_path: Path) -> None:
    with platform(tmp_path, GatewaySettings(key_failures_per_s=0.1)) as call:
        problem(call("GET", "/v1/collections", unknown()), 401)
        began = time.monotonic()
        problem(call("GET", "/v1/collections", unknown()), 429)
        assert time.monotonic() - began >= HOLD_S


def test_an_unknown_key_is_refused_again_without_a_query(tmp_path: Path) -> None:
    with platform(tmp_path) as call:
        key = unknown()
        problem(call("GET", "/v1/collections", key), 401)
        assert call.state.keys.remembers(key)
        problem(call("GET", "/v1/collections", key), 401)


class Damaged:
    """Keys whose catalog is damaged: look-ups fail, and no key is in memory."""

    def remembers(self, _text: str | None) -> bool:
        return False

    def look_up(self, _ids: list[str]) -> None:
        raise Corrupt("the catalog's file is damaged", path="catalog")

    def authenticate(self, _text: str | None, _scope: str) -> None:
        raise Corrupt("the catalog's file is damaged", path="catalog")


def test_look_ups_that_fail_leave_no_request_waiting() -> None:
    async def outcomes() -> list[object]:
        gate = KeyGate(Damaged(), Failures(100.0, time.monotonic))  # type: ignore[arg-type]
        waiting = [
            gate.principal(unknown(), "read", f"10.0.0.{i % 250}") for i in range(AT_ONCE + 10)
        ]
        async with asyncio.timeout(10):
            return await asyncio.gather(*waiting, return_exceptions=True)

    found = asyncio.run(outcomes())
    assert {type(each) for each in found} == {Corrupt}
