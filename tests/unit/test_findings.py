"""What an operator is told of an engine: whether it is healthy, what is wrong, what helps. One judgement for page,
`top` and `status`."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path

import pytest

from shardmem.console.cli import main
from shardmem.errors import Backpressure
from shardmem.http.operations import COMMANDS
from shardmem.status import findings as module
from shardmem.status.document import LEVELS
from shardmem.status.findings import STALE_S, Lately, findings
from shardmem.status.observer import Observer

SHARD = {
    "id": 0,
    "state": "active",
    "phase": "ready",
    "condition": "busy",
    "reason": "5 events in flight",
    "error": "",
    "alive": True,
    "slots": 32,
    "pid": 4713,
    "in_flight": 5,
    "in_hand_s": None,
    "fill_ratio": 0.1,
    "uptime_s": 600.0,
    "crashes": 0,
    "recent_crashes": 0,
    "restarting_in_s": None,
    "last_exit": None,
    "broken_lanes": [],
    "lanes": 2,
    "memory": "",
}
WELL = {
    "engine": {
        "name": "ticks",
        "state": "running",
        "slots": 64,
        "slots_unowned": 0,
        "max_shards": 4,
        "quarantine_held": 0,
        "memory": "",
        "lane_bytes": 1 << 20,
        "shm_free_bytes": 1 << 30,
        "shm_size_bytes": 1 << 31,
    },
    "supervisor": {"pid": 4711, "alive": True, "heartbeat_age_s": 0.1},
    "shards": [SHARD, {**SHARD, "id": 1}],
    "handoffs": [],
    "moves": {"automatic": True, "suspended": False, "planned": 0, "wished": 0, "held_back": "", "complaints": []},
    "cordoned": [],
    "pins": [],
    "auto_scale": True,
    "decisions": [],
    "hot_slots": [],
    "producers": [{"pid": 4712, "seat": 3, "client": None, "alive": True, "in_push": False, "blocked": 0.0}],
    "sources": [],
    "accounting": {"in_flight": 1234},
}
SOURCE = {
    "name": "logs",
    "state": "running",
    "paused": False,
    "error": None,
    "lag_bytes": 1234,
    "group": None,
    "apart": [],
    "partitions": {},
    "waits_for": None,
    "remote_error": None,
    "remote_error_age_s": None,
    "last_commit_age_s": 1.0,
}


def of(lately=Lately(), **changes):
    """Findings of a well engine with changes; `shard` are those of its first shard."""
    document = copy.deepcopy(WELL)
    for path, value in changes.items():
        part, _, key = path.partition("__")
        if part == "shard":
            document["shards"][0][key] = value
        elif key:
            document[part][key] = value
        else:
            document[part] = value
    return findings(document, lately)


def decided(cause, reason="shard 0 busier than 80%"):
    return [{"kind": "none", "count": 0, "cause": cause, "reason": reason, "advice": "up"}]


def test_a_well_engine_has_no_findings():
    assert [] == of()


MOVE = {"slot": 17, "from": 0, "to": 1, "phase": "draining", "age_s": 12.0, "late": True}


@pytest.mark.parametrize(
    "changes, level, kind, part, command",
    [
        ({"engine__state": "starting"}, "info", "starting", "starting", None),
        ({"engine__state": "draining"}, "warning", "draining", "1,234 events left", "shardmem stop ticks --now"),
        ({"engine__state": "stopped"}, "error", "stopped", "1,234 events in shared memory", None),
        ({"supervisor__alive": False}, "error", "no_supervisor", "workers go on", None),
        ({"supervisor__heartbeat_age_s": STALE_S + 1}, "error", "supervisor_hangs", "for 11 s", "kill -9 4711"),
        (
            {"shard__condition": "failed", "shard__state": "failed", "shard__alive": False, "shard__reason": "boom"},
            "error",
            "failed",
            "Shard 0 has failed; 32 slots are waiting: boom",
            "shardmem reload ticks",
        ),
        (
            {"shard__condition": "stuck", "shard__reason": "not a sign for 31 s"},
            "error",
            "stuck",
            "not a sign for 31 s",
            None,
        ),
        (
            {"shard__condition": "slow", "shard__in_hand_s": 33.0},
            "warning",
            "slow",
            "one batch in hand for 33 s; 5 events wait",
            "shardmem stacks ticks 0",
        ),
        (
            {"shard__condition": "restarting", "shard__alive": False, "shard__last_exit": "signal 9"},
            "warning",
            "no_worker",
            "Last exit: signal 9.",
            None,
        ),
        (
            {"shard__recent_crashes": 5, "shard__last_exit": "signal 11"},
            "error",
            "crash_loop",
            "5 times in the last 60 s. Last exit: signal 11",
            "shardmem reload ticks",
        ),
        ({"shard__broken_lanes": [3]}, "error", "broken_lane", "seat 3", None),
        ({"engine__slots_unowned": 32}, "warning", "unowned", "32 of 64 slots", None),
        ({"shard__fill_ratio": 0.97}, "warning", "backpressure", "97% full", "shardmem scale ticks 3"),
        (
            {"producers": [{"pid": 4712, "client": None, "alive": True, "blocked": 0.6}]},
            "warning",
            "blocked",
            "Producer 4712 waited for room 60%",
            "shardmem scale ticks 3",
        ),
        (
            {"lately": Lately(10.0, {"full": 7, "timeout": 0}, 0)},
            "warning",
            "refused",
            "7 events refused in the last 10 s (full 7)",
            None,
        ),
        ({"lately": Lately(10.0, {}, 5)}, "warning", "shed", "5 accepted events shed", None),
        (
            {"moves__suspended": True, "moves__planned": 12, "moves__held_back": "moves are suspended by hand"},
            "info",
            "suspended",
            "moves are suspended; 12 slots would move",
            "shardmem moves ticks resume",
        ),
        (
            {"moves__held_back": "3 moves wait: the producer of seat 4 is stopped in the middle of a push"},
            "warning",
            "held_back",
            "No slot can move: 3 moves wait: the producer of seat 4 is stopped in the middle of a push.",
            None,
        ),
        (
            {"moves__complaints": ["strategy Mine: rebalance raised KeyError: 7"]},
            "warning",
            "strategy",
            "Strategy Mine: rebalance raised KeyError: 7",
            None,
        ),
        (
            {"handoffs": [MOVE]},
            "warning",
            "late",
            "slot 17 from shard 0 to 1, draining for 12 s",
            "shardmem stacks ticks 0",
        ),
        (
            {"engine__shm_free_bytes": 1 << 20},
            "warning",
            "shm_full",
            "1.0 MiB of 2.0 GiB of /dev/shm are free, and one more shard with 2 lanes takes 2.0 MiB",
            "shardmem gc --dry-run",
        ),
        (
            {"engine__quarantine_held": 3},
            "warning",
            "quarantine",
            "holds 3 events that",
            "shardmem quarantine list ticks",
        ),
        (
            {
                "decisions": decided(
                    "manual", "the number of shards was set by hand; otherwise up 1: shard 0 busier than 80%"
                ),
                "auto_scale": False,
            },
            "info",
            "by_hand",
            "The number of shards was set by hand; otherwise up 1: shard 0 busier than 80%.",
            "shardmem scale ticks auto",
        ),
        ({"decisions": decided("at_max_shards")}, "info", "at_max_shards", "max_shards is reached", None),
        (
            {"decisions": decided("at_max_shards"), "shard__fill_ratio": 0.5},
            "warning",
            "at_max_shards",
            "max_shards is reached",
            None,
        ),
        (
            {
                "decisions": decided("at_max_shards"),
                "producers": [{"pid": 4712, "client": None, "alive": True, "blocked": 0.05}],
            },
            "warning",
            "at_max_shards",
            "max_shards is reached",
            None,
        ),
        (
            {"decisions": decided("auto_scale_off"), "auto_scale": False},
            "info",
            "auto_scale_off",
            "would add shards",
            "shardmem scale ticks 3",
        ),
        (
            {"sources": [SOURCE, {**SOURCE, "state": "failed", "error": "a.log, line 2: is not JSON"}]},
            "error",
            "source_failed",
            "Source logs has failed: a.log, line 2: is not JSON",
            "shardmem reload ticks",
        ),
        (
            {"sources": [{**SOURCE, "state": "misconfigured", "error": "source.partitions=3"}]},
            "error",
            "source_config",
            "Source logs cannot read as it is configured: source.partitions=3",
            "shardmem reload ticks",
        ),
        (
            {"engine__state_bytes": 4096, "sources": [{**SOURCE, "apart": ["views/3"]}]},
            "warning",
            "source_apart",
            "here is not views/3",
            None,
        ),
        (
            {"sources": [{**SOURCE, "partitions": {"t/0": {"state": "paused"}, "t/1": {"state": "owned"}}}]},
            "info",
            "source_paused",
            "1 partition of source logs is paused: t/0",
            "shardmem source resume ticks --source logs",
        ),
        (
            {"sources": [{**SOURCE, "state": "waiting", "waits_for": "k1:9092 does not answer"}]},
            "warning",
            "source_waits",
            "Source logs waits for its broker: k1:9092 does not answer",
            None,
        ),
        (
            {"sources": [{**SOURCE, "remote_error": "s3://b: no answer", "remote_error_age_s": 75.0}]},
            "warning",
            "remote",
            "Source logs cannot upload the state of its partitions: s3://b: no answer",
            None,
        ),
        (
            {"sources": [SOURCE, {**SOURCE, "group": "g", "last_commit_age_s": 75.2}]},
            "warning",
            "source_commits",
            "Source logs has committed nothing for 75 s",
            "shardmem status ticks",
        ),
        ({"sources": [{**SOURCE, "state": "died"}]}, "warning", "source_died", "source logs has died", None),
        (
            {"sources": [{**SOURCE, "state": "paused", "paused": True}]},
            "info",
            "source_paused",
            "Source logs is paused, 1,234 bytes behind",
            "shardmem source resume ticks --source logs",
        ),
        (
            {"hot_slots": [{"slot": 9, "shard": 1, "share": 0.7, "alone": True}]},
            "info",
            "hot_slot",
            "Slot 9 on shard 1 has 70%",
            None,
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_helps(changes, level, kind, part, command):
    (found,) = of(**changes)

    assert (level, kind, command) == (found["level"], found["kind"], found["command"])
    assert part in found["text"] and (found["advice"] or found["command"]), found
    if command and command.startswith("shardmem"):
        _, name, *arguments = shlex.split(command)
        group = main.commands[name]
        group = group.commands[arguments.pop(0)] if hasattr(group, "commands") else group
        group.make_context(name, arguments)  # raises for what the command line does not know
    if found["order"]:
        declared = next(each for each in COMMANDS if each.name == found["order"]["name"])
        assert [] == declared.faults(found["order"]["body"])


@pytest.mark.parametrize("waiting, level, command", [(0, "warning", "shardmem gc ticks"), (5, "error", None)])
def test_an_engine_of_which_nothing_runs_is_not_said_to_go_on(waiting, level, command):
    gone = [{**SHARD, "alive": False, "condition": "dead", "crashes": 5, "uptime_s": None}]
    found = of(
        supervisor__alive=False, shards=gone, accounting__in_flight=waiting, engine__slots_unowned=64, handoffs=[MOVE]
    )

    assert [("nothing_runs", level, command)] == [(each["kind"], each["level"], each["command"]) for each in found]
    assert f"{waiting} events in shared memory" in found[0]["text"]


ALONE = {"supervisor__alive": False}


@pytest.mark.parametrize(
    "changes, kind, level, part",
    [
        (
            {"shard__condition": "dead", "shard__alive": False, "engine__slots_unowned": 32},
            "no_worker",
            "error",
            "A supervisor is needed",
        ),
        ({"shard__condition": "stuck"}, "stuck", "error", "No supervisor is running to replace it"),
        (
            {"shard__condition": "failed", "shard__state": "failed", "shard__alive": False},
            "failed",
            "error",
            "Commands are refused",
        ),
        ({"shard__fill_ratio": 1.0}, "backpressure", "warning", "Commands are refused"),
        ({"handoffs": [MOVE, {**MOVE, "slot": 18, "late": False}]}, "frozen", "error", "Nothing is lost"),
    ],
)
def test_without_a_supervisor_nothing_is_promised_that_only_a_supervisor_does(changes, kind, level, part):
    found = {each["kind"]: each for each in of(**ALONE, **changes)}
    assert {"no_supervisor", kind} == set(found) and level == found[kind]["level"], found
    assert part in found[kind]["advice"] and found[kind]["order"] is None, found[kind]
    assert (found[kind]["command"] or "shardmem stacks").startswith("shardmem stacks"), "which needs no supervisor"


def test_slots_that_nobody_brings_to_an_end_are_counted():
    assert "2 slots are on the way" in of(**ALONE, handoffs=[MOVE, MOVE])[1]["text"]
    assert "1 slot is on the way" in of(**ALONE, handoffs=[MOVE])[1]["text"]


def test_what_a_dead_supervisor_had_decided_is_not_told():
    assert ["no_supervisor"] == [
        each["kind"] for each in of(**ALONE, decisions=decided("at_max_shards"), moves__suspended=True)
    ]


def test_slots_that_were_never_to_move_by_themselves_are_no_finding():
    assert [] == of(moves__automatic=False, moves__held_back="the number of shards is fixed")


def test_the_worst_comes_first():
    levels = [
        each["level"]
        for each in of(
            engine__state="draining",
            shard__fill_ratio=0.9,
            supervisor__alive=False,
            hot_slots=[{"slot": 9, "shard": 1, "share": 0.7, "alone": False}],
        )
    ]
    assert levels == sorted(levels, key=LEVELS.index) and "error" == levels[0] and "info" == levels[-1]


def test_what_is_true_of_every_moment_is_no_finding():
    assert [] == of(
        producers=[{"pid": 1, "alive": False, "blocked": 1.0}],
        handoffs=[{**MOVE, "late": False}],
        shard__crashes=50,
        lately=Lately(10.0, {"full": 0}, 0),
    )


def test_crashes_that_were_mended_long_ago_are_no_loop():
    assert [] == of(shard__crashes=30, shard__recent_crashes=2, shard__uptime_s=0.1)


@pytest.mark.parametrize(
    "last_exit, named", [("killed by SIGKILL, perhaps out of memory", True), ("exit code 5", False)]
)
def test_memory_is_named_where_it_may_be_the_reason(last_exit, named):
    assert named == ("memory" in of(shard__recent_crashes=3, shard__last_exit=last_exit)[0]["advice"])


def test_a_death_that_the_supervisor_has_not_seen_is_not_explained_by_the_one_before():
    (found,) = of(shard__condition="dead", shard__alive=False, shard__last_exit="signal 9")
    assert "no_worker" == found["kind"] and "signal 9" not in found["text"]


@pytest.mark.parametrize("state", ["provisioning", "draining"])
def test_a_shard_that_comes_or_goes_with_nothing_waiting_is_no_finding(state):
    empty = {"shard__condition": "dead", "shard__alive": False, "shard__state": state, "shard__slots": 0}
    assert [] == of(**empty, shard__in_flight=0)
    assert ["no_worker"] == [each["kind"] for each in of(**empty, shard__in_flight=5)]


def test_a_batch_that_takes_a_while_or_is_stuck_is_not_said_to_hang():
    assert [] == of(shard__condition="slow", shard__in_hand_s=9.0) == of(shard__condition="slow", shard__fill_ratio=0.5)
    assert ["stuck"] == [each["kind"] for each in of(shard__condition="stuck", shard__in_hand_s=99.0)]


def test_a_failed_shard_is_not_said_to_be_slow_or_unowned_too():
    found = of(
        shard__condition="failed",
        shard__state="failed",
        shard__alive=False,
        shard__fill_ratio=1.0,
        engine__slots_unowned=32,
    )
    assert ["failed"] == [each["kind"] for each in found]


def test_more_shards_are_not_advised_where_they_cannot_help():
    (full,) = of(shard__fill_ratio=0.9, engine__max_shards=2)
    assert full["order"] is None and "max_shards=2" in full["advice"]
    hot = of(shard__fill_ratio=0.9, hot_slots=[{"slot": 9, "shard": 0, "share": 0.7, "alone": True}])[0]
    assert hot["order"] is None and "more keys" in hot["advice"]


def test_a_late_handoff_names_whom_it_waits_for_and_the_one_command_that_helps():
    def advice(phase, shard=(), **changes):
        move = {**MOVE, "phase": phase}
        shards = [{**SHARD, **dict(shard)}, {**SHARD, "id": 1}]
        found = next(each for each in of(handoffs=[move], shards=shards, **changes) if each["kind"] == "late")
        return found["advice"], found["command"]

    failed = {"condition": "failed", "state": "failed", "alive": False}
    said, command = advice("draining", failed)
    assert "shard 0, which has failed" in said and "long batch" not in said and command == "shardmem reload ticks"
    assert "worker is being started again" in advice("draining", {"condition": "dead", "alive": False})[0]
    assert (
        "which waits itself: the database is away"
        in advice("draining", {"condition": "waiting", "reason": "the database is away"})[0]
    )
    said, command = advice("releasing")
    assert "shard 1 (worker pid 4713)" in said and command == "shardmem stacks ticks 1"
    stopped = [{"pid": 4712, "seat": 3, "client": "web", "alive": True, "in_push": True, "blocked": 0.0}]
    assert "producer web pid 4712 (seat 3)" in advice("rerouting", producers=stopped)[0]
    moves = {**WELL["moves"], "held_back": "3 moves wait"}
    (held_back,) = [each for each in of(moves=moves, producers=stopped) if each["kind"] == "held_back"]
    assert "producer web pid 4712 (seat 3)" in held_back["advice"]


def test_what_is_true_of_many_shards_is_said_once():
    failed = {**SHARD, "condition": "failed", "state": "failed", "alive": False, "reason": "no database"}
    (found,) = [each for each in of(shards=[{**failed, "id": n} for n in range(5)]) if each["level"] == "error"]
    assert found["shard"] == 0 and found["shards"] == [0, 1, 2, 3, 4]
    assert found["text"] == "Shard 0 has failed; 32 slots are waiting: no database. The same of shards 1, 2, 3, 4."


@pytest.mark.parametrize("fixed", [False, True])
def test_max_shards_is_no_matter_while_a_shard_has_failed(fixed):
    failed = {"shard__condition": "failed", "shard__state": "failed", "shard__alive": False}
    kinds = {each["kind"] for each in of(**failed, decisions=decided("at_max_shards"), auto_scale=not fixed)}
    assert kinds == {"failed"}


ILL = [
    {"shard__condition": "failed", "shard__state": "failed", "shard__alive": False},
    {"shard__condition": "stuck"},
    {"shard__condition": "slow", "shard__in_hand_s": 33.0},
]


@pytest.mark.parametrize("ill", ILL, ids=["failed", "stuck", "hanging"])
def test_more_shards_are_not_advised_for_a_shard_that_gets_nowhere(ill):
    waiting = [{"pid": 4712, "client": None, "alive": True, "blocked": 1.0}]
    found = of(**ill, shard__fill_ratio=1.0, producers=waiting, decisions=decided("auto_scale_off"), auto_scale=False)
    assert [] == [each for each in found if each["order"] and each["order"]["name"] == "scale"], found
    assert "Shard 0 may be the cause" in {each["kind"]: each["advice"] for each in found}["blocked"]
    assert "backpressure" not in {each["kind"] for each in found}, "that it cannot keep up is no news"


def test_a_fixed_engine_that_is_too_slow_is_told_once_and_of_one_shard_more():
    (found,) = of(
        shard__fill_ratio=1.0,
        shards=[{**SHARD, "fill_ratio": 1.0}],
        decisions=decided("auto_scale_off"),
        auto_scale=False,
    )
    assert "backpressure" == found["kind"] and "shardmem scale ticks 2" == found["command"]
    assert found["advice"].startswith("To add a shard")
    beside_a_failed_one = {
        each["kind"]: each
        for each in of(
            shards=[
                {**SHARD, "fill_ratio": 1.0},
                {**SHARD, "id": 1, "state": "failed", "condition": "failed", "alive": False},
            ]
        )
    }
    assert {"shards": 3} == beside_a_failed_one["backpressure"]["order"]["body"], (
        "with a failed shard, 2 is what there is"
    )


def test_refusals_of_the_last_seconds_are_found_in_a_real_engine(loopback):
    engine = loopback(shards=2, lane_bytes=4096)
    observer, producer = Observer(engine.control), engine.producer(backpressure="fail")
    assert "refused" not in [each["kind"] for each in observer.status()["findings"]]
    with pytest.raises(Backpressure):
        producer.push_many([1] * 400, [b"x" * 64] * 400)
    document = observer.status()
    observer.close()

    refused = document["accounting"]["refused"]["full"]
    assert (
        300 < refused
        and f"{refused:,} events refused" in {each["kind"]: each["text"] for each in document["findings"]}["refused"]
    )


def source() -> str:
    """Of all that judges."""
    return "".join(path.read_text() for path in Path(module.__file__).parent.glob("*.py"))


def test_every_order_of_a_finding_is_one_that_the_page_can_give():
    orders = set(re.findall(r'\border\("([\w/]+)"', source()))
    page = (Path(module.__file__).parents[2] / "http" / "page" / "orders.js").read_text()
    assert {"scale", "moves"} <= orders <= set(re.findall(r'^  "?([\w/]+)"?: \{$', page, re.MULTILINE))


def test_every_kind_of_finding_is_in_the_documentation():
    kinds = set(re.findall(r'finding\(\s*"\w+",\s*"(\w+)"', source()))
    documented = (Path(__file__).parents[2] / "docs" / "operations.md").read_text().partition("## Findings")[2]
    assert 15 < len(kinds) and set() == {kind for kind in kinds if f"`{kind}`" not in documented.partition("\n## ")[0]}
