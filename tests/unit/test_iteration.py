"""Iterating over a batch: pairs are made one at a time, and end with the handler's return."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import pytest

import shardmem
from shardmem.errors import BatchEscaped


def filled(loopback, count=4096, frames=1):
    """(an engine, a batch of so many events in so many frames, its pairs)."""
    engine = loopback(lane_bytes=1 << 22)
    producer = engine.producer()
    made = [(number if number % 3 else f"user-{number}", b"%064d" % number) for number in range(count)]
    for start in range(0, count, count // frames):
        producer.push_many(*map(list, zip(*made[start : start + count // frames])))
    return engine, engine.take(), made


@pytest.mark.parametrize("frames", [1, 16])
def test_pairs_come_in_order_over_all_frames_and_the_iterator_knows_how_many_are_left(loopback, frames):
    _, batch, made = filled(loopback, 1600, frames)
    going = iter(batch)
    assert [next(going) for _ in range(250)] == made[:250]
    assert going.__length_hint__() == 1350
    assert list(going) == made[250:] and going.__length_hint__() == 0
    assert list(going) == []


def test_a_pair_that_is_kept_is_not_changed_by_the_next(loopback):
    engine, batch, made = filled(loopback, 300)
    kept = list(batch)
    engine.commit()
    assert kept == made


def test_a_pair_that_was_hashed_and_let_go_of_does_not_give_its_hash_to_the_next(loopback):
    """The tuple is used again where nobody has it: some Pythons remember the hash of a tuple in it."""
    _, batch, made = filled(loopback, 300)
    known = set(made)
    assert all(pair in known for pair in batch)


def test_iterations_of_one_batch_do_not_disturb_each_other(loopback):
    _, batch, made = filled(loopback, 20)
    assert [(one, other) for one in batch for other in batch] == [(one, other) for one in made for other in made]


def test_an_iteration_takes_no_memory_for_events_that_it_has_not_come_to(loopback):
    _, batch, made = filled(loopback)
    tracemalloc.start()
    for _key, _payload in batch:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_384 < sum(len(payload) for _, payload in made)


@pytest.mark.parametrize("steps", [0, 5])
def test_an_iterator_that_is_kept_past_its_batch_is_refused_at_its_next_step(loopback, steps):
    engine, batch, _ = filled(loopback, 10)
    kept, other = iter(batch), iter(batch)
    for _ in range(steps):
        next(kept)
        next(other)
    engine.commit()
    for each in (kept, other, kept):
        with pytest.raises(BatchEscaped, match="ended when its handler returned"):
            next(each)


def test_an_iterator_that_has_come_to_its_end_says_so_also_after_its_batch(loopback):
    engine, batch, _ = filled(loopback, 10)
    kept = iter(batch)
    list(kept)
    engine.commit()
    assert list(kept) == []


def test_the_iterator_of_a_batch_that_owns_its_memory_keeps_that(loopback):
    engine, batch, made = filled(loopback, 300)
    of_copy, by_hand = iter(batch.copy()), iter(shardmem.Batch.of(made))
    engine.commit()
    gc.collect()
    others = [bytearray(b"\xee" * 24_000) for _ in range(50)]  # take the memory that was freed, if any was
    assert list(of_copy) == list(by_hand) == made and len(others) == 50


def test_an_iterator_that_was_left_half_way_keeps_no_batch_alive(loopback):
    engine, batch, _ = filled(loopback, 10)
    next(iter(batch))
    engine.commit()
    gone = weakref.ref(batch)
    gc.disable()
    try:
        del batch
        assert gone() is None
    finally:
        gc.enable()


def test_where_an_iteration_was_is_known_until_it_has_come_to_its_end(loopback):
    _, batch, _ = filled(loopback, 3)
    assert batch._position() is None
    going = iter(batch)
    assert batch._position() is None
    for number in range(3):
        next(going)
        assert batch._position() == number
    assert list(going) == [] and batch._position() is None
