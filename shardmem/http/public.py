"""What is said of an engine to whoever can reach the port and shows no token: figures, and sentences of our own.

The text of an exception is the user's, and a handler that says which event it could not take says what was in it: a
card's number stood in /readyz, and load balancers write that into their logs. So what a handler, a strategy, a source
or an error said is left out, wherever it may stand; what may stand is named here, and all else is taken for the user's.
"""

from __future__ import annotations

import re

from shardmem.status.document import LEVELS, HistoryEntry, ShardStatus, SourceStatus, Status
from shardmem.status.findings import findings

HIDDEN = "what it says is not shown without the http_token; see `shardmem status`"
_CONDITIONS = ("stopped", "restarting", "dead", "stuck", "starting", "slow", "busy", "idle")  # our words say why
_EXIT = r"(killed by (SIG\w+|signal \d+|the supervisor)(, perhaps out of memory)?|exit code -?\d+)"
_HISTORY = {  # kinds whose sentences are ours, or begin with what is
    **dict.fromkeys(
        (
            "started",
            "took_over",
            "scaled",
            "shard_added",
            "shard_removed",
            "worker_started",
            "worker_replaced",
            "stuck",
            "moved",
            "late",
            "lane_broken",
            "quarantined",
            "replayed",
            "purged",
            "reload",
            "draining",
        ),
        re.compile(".*", re.DOTALL),
    ),
    "worker_died": re.compile(rf"worker( pid \d+)? ended: {_EXIT}"),
    "stopped": re.compile(r"stopped with [\d,]+ events not handled"),
}
_LATELY = ("refused", "shed")  # they come of two looks, and say numbers


def public(document: Status) -> Status:
    shown = document.copy()
    shown["shards"] = [_shard(each) for each in document["shards"]]
    shown["sources"] = [_source(each) for each in document["sources"]]
    moves = document["moves"]
    complaints = ["the strategy failed: " + HIDDEN] if moves["complaints"] else []
    shown["moves"] = {**moves, "complaints": complaints}
    shown["history"] = shown["events"] = [_happened(each) for each in document["history"]]
    lately = [each for each in document["findings"] if each["kind"] in _LATELY]
    shown["findings"] = sorted([*findings(shown), *lately], key=lambda each: LEVELS.index(each["level"]))
    return shown


def _shard(shard: ShardStatus) -> ShardStatus:
    ours = shard["condition"] in _CONDITIONS and shard["reason"] != shard["error"]
    return {
        **shard,
        "error": shard["error"] and HIDDEN,
        "reason": shard["reason"] if ours else shard["reason"] and HIDDEN,
        "last_exit": shard["last_exit"] and _ours(re.compile(_EXIT), shard["last_exit"]),
    }


def _source(source: SourceStatus) -> SourceStatus:
    """Partitions are named after files and topics."""
    partitions = {f"partition {number}": each for number, each in enumerate(source["partitions"].values())}
    hidden = ("error", "group", "waits_for", "remote", "remote_error")
    apart = [HIDDEN for _ in source["apart"]]
    return {**source, **{name: source[name] and HIDDEN for name in hidden}, "partitions": partitions, "apart": apart}  # type: ignore[typeddict-item, literal-required]


def _happened(entry: HistoryEntry) -> HistoryEntry:
    kind = entry["kind"]
    text = _ours(_HISTORY[kind], entry["text"]) if kind in _HISTORY else HIDDEN
    return {**entry, "text": text if text != HIDDEN else f"{kind.replace('_', ' ')}: {HIDDEN}"}


def _ours(form: re.Pattern[str], text: str) -> str:
    """The part of a sentence that has one of our forms."""
    found = form.match(text)
    return found[0] if found else HIDDEN
