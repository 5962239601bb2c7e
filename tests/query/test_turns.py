"""Heavy requests take turns: the tenant that used the least is next, within deadlines."""

import asyncio

import pytest

from query.turns import Turns
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded
from vicinage.tenant_context import TenantContext


async def work(turns: Turns, tenant: str, done: list[str], s: float = 0.0, weight: int = 1) -> None:
    async with turns.take(TenantContext(tenant, weight), Deadline.after(30)):
        await asyncio.sleep(s)
        done.append(tenant)


def test_a_new_tenant_precedes_the_rest_of_a_busy_one() -> None:
    async def order() -> list[str]:
        turns, done = Turns(1), list[str]()
        crowd = [asyncio.ensure_future(work(turns, "loud", done, 0.002)) for _ in range(20)]
        await asyncio.sleep(0.005)
        await work(turns, "quiet", done)
        await asyncio.gather(*crowd)
        return done

    assert "quiet" in asyncio.run(order())[:8]


def test_turns_count_use_not_requests() -> None:
    async def order() -> list[str]:
        turns, done = Turns(1), list[str]()
        both = [work(turns, "heavy", done, 0.02) for _ in range(5)] + [
            work(turns, "light", done, 0.001) for _ in range(5)
        ]
        await asyncio.gather(*both)
        return done

    done = asyncio.run(order())
    assert done.index("heavy") == 0
    assert done[1:6] == ["light"] * 5


def test_concurrency_is_bounded_and_every_turn_is_returned() -> None:
    async def most() -> int:
        turns, now, seen = Turns(3), [0], [0]

        async def one(i: int) -> None:
            async with turns.take(TenantContext(f"t{i % 4}"), Deadline.after(30)):
                now[0] += 1
                seen[0] = max(seen[0], now[0])
                await asyncio.sleep(0)
                now[0] -= 1
                if i % 5 == 0:
                    raise ValueError

        await asyncio.gather(*(one(i) for i in range(40)), return_exceptions=True)
        await asyncio.gather(*(one(i) for i in (1, 2, 3)))
        return seen[0]

    assert asyncio.run(most()) == 3


def test_a_request_that_times_out_or_disconnects_takes_no_turn() -> None:
    async def used() -> list[str]:
        turns, done = Turns(1), list[str]()
        holding = asyncio.ensure_future(work(turns, "holder", done, 0.1))
        await asyncio.sleep(0)
        gone = asyncio.ensure_future(work(turns, "gone", done))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(DeadlineExceeded):
            async with turns.take(TenantContext("late"), Deadline.after(0.02)):
                done.append("late")
        await holding
        await work(turns, "next", done)
        return done

    assert asyncio.run(used()) == ["holder", "next"]


def test_one_tenant_holds_no_more_than_its_bound_while_others_still_run() -> None:
    async def order() -> list[str]:
        turns, done = Turns(4, tenant_max=2), list[str]()
        stuck = [asyncio.ensure_future(work(turns, "stuck", done, 10)) for _ in range(8)]
        await asyncio.sleep(0)
        await asyncio.gather(*(work(turns, f"t{i}", done) for i in range(3)))
        for each in stuck:
            each.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        await work(turns, "stuck", done)
        return done

    assert asyncio.run(order()) == ["t0", "t1", "t2", "stuck"]
