"""What is wrong with sources, and what helps."""

from __future__ import annotations

from collections.abc import Iterator

from shardmem.status.document import Finding, SourceStatus, Status
from shardmem.status.findings.finding import finding, order
from shardmem.text import listed, plural

STILL_S = 60.0  # commits of a broker stand still: most intervals are of a second, most batches too


def of_sources(document: Status) -> Iterator[Finding]:
    if document["engine"]["state"] != "running":
        return
    for source in document["sources"]:
        name, error, engine = source["name"], source["error"], document["engine"]["name"]
        if source["state"] == "misconfigured":
            yield finding(
                "error",
                "source_config",
                f"Source {name} cannot read as it is configured: {error}",
                "It is not started again until its configuration changes: correct [source], and take it up with:",
                f"shardmem reload {engine}",
                order("reload"),
            )
        elif error is not None:
            yield finding(
                "error",
                "source_failed",
                f"Source {name} has failed: {error}",
                "It is tried again at ever longer intervals, up to 30 s. A change of [source] in the configuration "
                "takes effect with:",
                f"shardmem reload {engine}",
                order("reload"),
            )
        elif source["state"] == "died":
            yield finding(
                "warning",
                "source_died",
                f"The process of source {name} has died.",
                "A supervisor starts it again at once; nothing is missed. If it dies again and again, the log of the "
                "engine says how.",
            )
        elif source["waits_for"] is not None:
            yield finding(
                "warning",
                "source_waits",
                f"Source {name} waits for its broker: {source['waits_for']}",
                "What it has pushed is handled meanwhile, and nothing is missed. `shardmem doctor engine.toml` says "
                "whether the broker can be reached from here.",
            )
        elif source["remote_error"] is not None:
            yield finding(
                "warning",
                "remote",
                f"Source {name} cannot upload the state of its partitions: {source['remote_error']}",
                f"Its commits stand still since {source['remote_error_age_s'] or 0:,.0f} s, and events flow: another "
                "host would begin at the last commit, and repeat what was done since. In the state nothing is counted "
                "twice. It is tried again at ever longer intervals, up to 30 s.",
            )
        elif source["apart"] and document["engine"]["state_bytes"]:
            yield finding(
                "warning",
                "source_apart",
                f"Source {name} reads partitions whose equals of other topics are on another host: here is not "
                f"{listed(source['apart'])}.",
                "State is kept by partition, for all topics together: a key that is in several of them has two states. "
                "Give the topics equally many partitions, and let Kafka's new protocol of groups share them out: "
                "without group.instance.id, and with group.remote.assignor = range.",
            )
        elif _stands_still(source):
            yield finding(
                "warning",
                "source_commits",
                f"Source {name} has committed nothing for {source['last_commit_age_s']:,.0f} s.",
                "Events flow, but one that was pushed long ago is not handled yet: another host would begin there. See "
                "which shard waits, and what it waits for:",
                f"shardmem status {engine}",
            )
        elif (waiting := _paused(source)) is not None:
            yield finding(
                "info",
                "source_paused",
                waiting,
                "It goes on with:",
                f"shardmem source resume {engine} --source {name}",
                order("source/resume", source=name),
            )


def _paused(source: SourceStatus) -> str | None:
    if source["paused"]:
        behind = "" if source["lag_bytes"] is None else f", {source['lag_bytes']:,} bytes behind"
        return f"Source {source['name']} is paused{behind}."
    if some := [name for name, each in source["partitions"].items() if each["state"] == "paused"]:
        verb = "is" if len(some) == 1 else "are"
        return f"{plural(len(some), 'partition')} of source {source['name']} {verb} paused: {listed(some)}."
    return None


def _stands_still(source: SourceStatus) -> bool:
    age = source["last_commit_age_s"]
    return source["group"] is not None and source["state"] == "running" and age is not None and age > STILL_S
