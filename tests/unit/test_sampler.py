"""The load of a slot is the share of a worker's time that its events take."""

from __future__ import annotations

import time

import numpy as np
import pytest

from shardmem.runtime.batch import slot_of
from shardmem.status.observer import Observer
from shardmem.supervisor.sampler import SLOT_MEMORY, Sampler


@pytest.fixture
def sampler(loopback):
    """On an engine of one shard; `taken` is what its words say that each slot took, ns."""
    observer = Observer(loopback().control)
    sampler = Sampler(observer)
    sampler.taken = np.zeros(observer.control.slots, "u8")
    observer.control.busy_by_slot = lambda: sampler.taken.copy()
    yield sampler
    observer.close()


def take(sampler: Sampler, seconds: float, until: float) -> None:
    """Slot 3 takes this much, and a second look is had."""
    sampler.taken[3] += np.uint64(seconds * 1e9)
    sampler.sample([], until)


def test_a_load_is_right_from_the_second_interval_on(sampler):
    take(sampler, 5.0, 100.0)
    assert not sampler.rates.any(), "what was before the first look says nothing of a rate"
    take(sampler, 0.1, 100.25)
    assert not sampler.rates.any(), "one look alone may be one slow event"
    for step in range(1, 200):
        take(sampler, 0.1, 100.25 + step * 0.25)
        assert sampler.rates[3] == pytest.approx(0.4) and sampler.rates.sum() == pytest.approx(0.4)


def test_one_slow_event_is_no_load_and_a_second_one_is(sampler):
    for step in range(40):
        take(sampler, 3.0 if step == 20 else 0.0, step * 0.25)
        assert not sampler.rates.any()
    take(sampler, 3.0, 10.0)
    assert sampler.rates[3] > 0.1


def test_a_load_that_ends_is_half_forgotten_in_about_seven_seconds(sampler):
    for step in range(400):
        take(sampler, 0.2, step * 0.25)
    for step in range(28):
        take(sampler, 0.0, 100.0 + step * 0.25)
    assert sampler.rates[3] == pytest.approx(0.8 * np.exp(-7.0 / SLOT_MEMORY), rel=0.02)


def test_how_often_is_looked_changes_nothing(sampler):
    take(sampler, 0.0, 0.0)
    take(sampler, 0.5, 1.0)
    take(sampler, 0.5, 2.0)
    take(sampler, 0.0, 2.0)
    assert sampler.rates[3] == pytest.approx(0.5)
    for step in range(1, 11):
        take(sampler, 0.05, 2.0 + step * 0.1)
    assert sampler.rates[3] == pytest.approx(0.5)


@pytest.mark.parametrize("word", [0, 1 << 63, (1 << 64) - 1])
def test_a_damaged_word_makes_no_load_below_zero(sampler, word):
    for step in range(3):
        take(sampler, 0.1, step * 0.25)
    sampler.taken[3] = word
    sampler.sample([], 1.0)
    assert np.isfinite(sampler.rates).all() and (sampler.rates >= 0).all()


def test_slots_have_what_handling_took_and_costly_ones_most_of_it(loopback):
    engine = loopback(batch_rows=64)
    producer, slots = engine.producer(), engine.control.slots
    cheap = next(f"k{n}" for n in range(100) if slot_of(f"k{n}", slots) != slot_of("dear", slots))
    dear_at, cheap_at = slot_of("dear", slots), slot_of(cheap, slots)
    for turn in range(48):
        if turn == 18:
            learned = engine.control.busy_by_slot()
        dear = 1 + turn % 3
        producer.push_many(["dear"] * dear + [cheap] * 3, [b""] * (dear + 3))
        assert engine.take() is not None
        time.sleep(dear / 50)  # long beside what a busy machine adds to it
        engine.commit()
    busy_ns = engine.control.busy_by_slot()
    assert busy_ns.sum() == engine.control.view_shard(0).busy_ns, "every batch was long enough to be measured"
    assert busy_ns.sum() == busy_ns[dear_at] + busy_ns[cheap_at]
    lately = busy_ns - learned
    assert lately[dear_at] > 0.5 * lately.sum()
