"""Turns of clients that ask at the same time."""

import asyncio

import pytest

from segserve.gateway.fair_queue import Turns
from segserve.runtime.errors import OverloadedError


def test_turns_of_one_client_come_in_the_order_it_asked():
    async def run():
        turns, order, under_way = Turns(in_flight=2, waiting=10), [], 0

        async def ask(number):
            nonlocal under_way
            async with turns.turn("one"):
                under_way += 1
                order.append((number, under_way))
                await asyncio.sleep(0)
                under_way -= 1

        await asyncio.gather(*map(ask, range(6)))
        return order

    order = asyncio.run(run())
    assert [number for number, _ in order] == list(range(6))
    assert max(under_way for _, under_way in order) == 2


def test_turns_of_a_client_whose_line_is_full_are_refused_and_those_of_another_are_not():
    async def run():
        turns = Turns(in_flight=1, waiting=0)
        async with turns.turn("one"):
            async with turns.turn("other"):
                pass
            async with turns.turn("one"):
                pass

    with pytest.raises(
        OverloadedError, match="1 requests of yours are here already; send fewer, or again later"
    ):
        asyncio.run(run())


def test_turns_given_up_while_waiting_go_to_the_next_and_leave_nothing_behind():
    async def run():
        turns = Turns(in_flight=1, waiting=10)

        async def ask():
            async with turns.turn("one"):
                await asyncio.sleep(0)

        async with turns.turn("one"):
            waiting = [asyncio.create_task(ask()) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
        await asyncio.wait(waiting)
        return [task.cancelled() for task in waiting], len(turns._lines)

    assert asyncio.run(run()) == ([True, False, False], 0)
