"""What the supervisor keeps for the page: an hour, whatever happens to the counts."""

from __future__ import annotations

from typing import Any

from shardmem.http.series import EVERY_S, KEPT_S, Series


def document(accepted: int, **changes: Any) -> Any:
    shard = {"id": 3, "rate": 5.0, "fill_ratio": 0.25, "busy": 0.5}
    return {
        "accounting": {
            "accepted": accepted,
            "handled": accepted // 2,
            "refused": {"full": 1, "timeout": 2},
            "in_flight": 7,
        },
        "latency": {"p50_us": 10.0, "p99_us": None},
        "shards": [shard, {**shard, "id": 4, "fill_ratio": 0.75}],
        **changes,
    }


def test_rates_are_of_the_time_between_two_points_and_of_shards_as_they_are() -> None:
    series = Series()
    series.note(document(0), 1000.0)
    series.note(document(100), 1005.0)
    first, second = series.points()
    assert first["accepted"] is None and (second["accepted"], second["handled"], second["refused"]) == (20.0, 10.0, 0.0)
    assert (second["fullest"], second["mean"], second["in_flight"], second["p99"]) == (0.75, 0.5, 7, None)
    assert second["shards"]["3"] == {"rate": 5.0, "fill": 0.25, "busy": 0.5}


def test_counts_that_begin_again_and_a_clock_that_was_set_back_are_no_rate() -> None:
    series = Series()
    for at, accepted in ((1000.0, 100), (1005.0, 40), (900.0, 60), (905.0, 80)):
        assert series.is_due(at)
        series.note(document(accepted), at)
    assert [each["accepted"] for each in series.points()] == [None, None, None, 4.0]


def test_a_point_is_due_every_five_seconds_and_an_hour_of_them_is_kept() -> None:
    series, at = Series(), 1000.0
    for _ in range(int(2 * KEPT_S / EVERY_S)):
        assert series.is_due(at)
        series.note(document(int(at)), at)
        assert not series.is_due(at + EVERY_S - 0.1)
        at += EVERY_S
    points = series.points()
    assert points[-1]["at"] - points[0]["at"] == KEPT_S - EVERY_S
