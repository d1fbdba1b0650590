"""The supervisor's loop waits for news, and can be ended while it waits."""

from __future__ import annotations

import asyncio

from shardmem.supervisor.life import Life

PATIENCE = 60.0


def test_a_cancellation_that_comes_with_the_news_is_not_swallowed():
    """wait_for does, before Python 3.12: a supervisor went on for ever after its end."""

    async def main():
        life, turns = Life(), 0

        async def loop():
            nonlocal turns
            while True:
                await life.wait(PATIENCE)
                turns += 1

        task = asyncio.create_task(loop())
        await asyncio.sleep(0)
        life.wake()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,), timeout=PATIENCE / 2)
        assert task.cancelled()

    asyncio.run(main())


def test_it_waits_no_longer_than_it_was_told_and_for_news_that_came_before_not_at_all():
    async def main():
        life = Life()
        await life.wait(0.01)
        life.wake()
        await life.wait(PATIENCE * 1000)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
