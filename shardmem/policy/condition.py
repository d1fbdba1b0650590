"""What a shard is doing, from what its worker's words say: stuck is told from slow, and slow from idle."""

from __future__ import annotations

from dataclasses import dataclass

from shardmem.settings import some

SLOW_BATCH = 1.0  # seconds that a batch may take before it is worth a word
LINGERS = 3.0  # seconds that one which was told to end may take for that before it is worth a word
FULL = 0.5  # of a lane
RISING = 0.02  # of a lane, between two looks
WORTH_A_WORD = 0.25  # of a lane: below, it rises and falls with every batch


@dataclass(frozen=True)
class Facts:
    """Of one shard at one moment; ages in seconds. in_hand: age of the batch in hand, None between batches."""

    state: str
    phase: str
    alive: bool
    quiet: float
    in_hand: float | None
    in_flight: int = 0
    fill: float = 0.0
    filled_before: float | None = None
    error: str = ""
    waiting: float | None = None  # for so long, in vain; None: it does not
    next_try: float = 0.0


@dataclass(frozen=True)
class Limits:
    """stall: how long a worker without a batch may be quiet; batch: how long one may be in hand (None: as long as it
    likes); boot: how long it may take to get ready."""

    stall: float = 30.0
    batch: float | None = None
    boot: float = 30.0


def stuck(facts: Facts, limits: Limits) -> str | None:
    """Why a live worker has to be given up on; None: it has not."""
    if not facts.alive:
        return None
    if facts.phase == "booting":
        return (
            f"not ready for {facts.quiet:.3g} s (boot_timeout={limits.boot:g} s): its handler may hang in import or in "
            f"open()"
            if facts.quiet > limits.boot
            else None
        )
    if facts.in_hand is not None:
        return (
            f"its batch is in hand for {facts.in_hand:.3g} s (batch_deadline={limits.batch:g} s)"
            if limits.batch is not None and facts.in_hand > limits.batch
            else None
        )
    if facts.quiet > limits.stall:
        return f"no batch in hand and not a sign for {facts.quiet:.3g} s (stall_timeout={limits.stall:g} s)"
    return None


def condition_of(facts: Facts, limits: Limits, restarting_in: float | None = None) -> tuple[str, str]:
    """(one word, one line of reason)."""
    if facts.state == "failed":
        again = "" if restarting_in is None else f"; the next try comes in {restarting_in:.3g} s"
        return "failed", facts.error + again
    if facts.state == "stopped":
        if facts.alive and facts.in_hand is None and facts.quiet > LINGERS:
            return "stuck", f"told to end and with nothing left to do, it has not ended for {facts.quiet:.3g} s"
        return "stopped", "told to end"
    if not facts.alive:
        if restarting_in is not None:
            return "restarting", f"its worker ended; the next one comes in {restarting_in:.3g} s"
        return "dead", "it has no worker at this moment"
    if (why := stuck(facts, limits)) is not None:
        return "stuck", why
    if facts.waiting is not None:
        why = facts.error or "its next worker starts"  # which says why it waits, as soon as it can
        reason = f"{why}; waiting for {facts.waiting:.3g} s, the next try comes in {facts.next_try:.3g} s"
        return "waiting", reason
    if facts.phase == "booting":
        return "starting", "its worker is not ready yet"
    rising = (
        facts.filled_before is not None and facts.fill - facts.filled_before >= RISING and facts.fill >= WORTH_A_WORD
    )
    if facts.in_hand is not None and facts.in_hand > SLOW_BATCH:
        return "slow", f"its batch is in hand for {facts.in_hand:.3g} s, {some(facts.in_flight, 'event')} in flight"
    if facts.fill >= FULL or (rising and facts.in_flight):
        return "slow", f"its fullest lane is {facts.fill:.0%} full" + (" and rising" if rising else "")
    if facts.in_hand is not None or facts.in_flight:
        return "busy", f"{some(facts.in_flight, 'event')} in flight"
    return "idle", "nothing is waiting"
