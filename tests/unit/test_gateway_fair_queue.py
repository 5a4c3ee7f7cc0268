"""Slots of clients that send requests at the same time."""

import asyncio

import pytest

from segserve.gateway.admission import FairQueue
from segserve.runtime.errors import OverloadedError


def test_slots_of_one_client_are_given_in_the_order_of_its_requests():
    async def run():
        queue, order, pending = FairQueue(in_flight=2, waiting=10), [], 0

        async def request(number):
            nonlocal pending
            async with queue.slot("one"):
                pending += 1
                order.append((number, pending))
                await asyncio.sleep(0)
                pending -= 1

        await asyncio.gather(*map(request, range(6)))
        return order

    order = asyncio.run(run())
    assert [number for number, _ in order] == list(range(6))
    assert max(pending for _, pending in order) == 2


def test_slot_of_a_client_whose_queue_is_full_is_rejected_and_that_of_another_is_not():
    async def run():
        queue = FairQueue(in_flight=1, waiting=0)
        async with queue.slot("one"):
            async with queue.slot("other"):
                pass
            async with queue.slot("one"):
                pass

    with pytest.raises(
        OverloadedError, match="1 of your requests are here already; send fewer at once"
    ):
        asyncio.run(run())


def test_slots_given_up_while_waiting_go_to_the_next_request():
    async def run():
        queue = FairQueue(in_flight=1, waiting=10)

        async def request():
            async with queue.slot("one"):
                await asyncio.sleep(0)

        async with queue.slot("one"):
            waiting = [asyncio.create_task(request()) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
        await asyncio.wait(waiting)
        return [task.cancelled() for task in waiting], len(queue._clients)

    assert asyncio.run(run()) == ([True, False, False], 0)
