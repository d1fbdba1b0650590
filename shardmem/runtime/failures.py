"""What becomes of a batch: handled, tried again, or set aside.

    returned              committed; rows that it rejected are quarantined with that
    Retry, `retry_on`     the whole shard waits, and the batch comes again as it was
    Reject                the one event is found, and quarantined at once
    anything else         the one event is found, and put on trial: policy/trials.py judges it, csrc/trials.c keeps it

The record of attempts is in shared memory, so it makes no difference whether the handler raised or took its worker with
it: the successor goes on where the predecessor died.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardmem.errors import HandlerError, ShardmemError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.reader import TRIAL_ASIDE, TRIAL_DIED, TRIAL_NONE, TRIAL_TAKEN, TRIAL_WAITS, Reader, TrialView
from shardmem.policy import LONGEST_PAUSE, Place, Trial, Trials, Verdict
from shardmem.runtime.aside import Aside, Failure
from shardmem.runtime.batch import Batch, Scratch
from shardmem.runtime.commit import REST_NS, Commit
from shardmem.runtime.explain import explain, let_go, short, trace_of
from shardmem.runtime.forked import end_if_forked
from shardmem.runtime.outcomes import OnError, Reject, RetryOn
from shardmem.runtime.quarantine import Entry, QuarantineFull
from shardmem.runtime.waiting import DRAINING_WAIT_S, LOG_S, REST_S, SAID_EACH_S, Waiting
from shardmem.text import of_error, plural

if TYPE_CHECKING:
    from shardmem.memory.native import sm_batch

LOOK_AGAIN_S = 0.1  # at an event on trial that others of its key are before
ANOTHER_AFTER = 5  # tries to use the quarantine: 3 s
FRESH_S = 1.0  # a shard in doubt tries events that have just come at least as seldom, whatever it waits

log = logging.getLogger("shardmem.worker")


@dataclass
class _Doubt:
    """Of a shard in doubt: what is tried next (a round is an event on trial, then one of another key), and how soon
    what has just come may be."""

    others: bool = True
    arrived: int = 0
    fresh_wait: float = 0.001
    tried_at: float = field(default_factory=time.monotonic)


class Failures:
    """batch: the C view of the batch in hand. busy: whether anything waits or is on trial; then `step` comes before
    each batch."""

    def __init__(
        self,
        control: ControlSegment,
        shard: int,
        reader: Reader,
        batch: sm_batch,
        commit: Commit,
        aside: Aside,
        rules: OnError,
        ended: str | None,
        said: str,
        scratch: Scratch,
    ) -> None:
        self._control, self._shard, self._reader, self._batch = control, shard, reader, batch
        self._commit, self._aside, self._rules, self._scratch = commit, aside, rules, scratch
        self._ended = ended or "it exited without a report"
        self._retry_on = RetryOn(rules.retry_on)
        self._waiting = Waiting(control, shard, rules.retry_max_wait, said)
        self._trials = Trials(1 if rules.on_error == "quarantine" else rules.max_attempts, rules.retry_backoff)
        self._why: dict[int, Failure] = {}  # of the events on trial, by their number in the table
        self._expired: set[int] = set()  # of them, those that asked for another try later for too long
        self._doubt: _Doubt | None = None
        self._in_trial: int | None = None
        self._others_next, self._logged_at, self._told_at = False, -LOG_S, -LOG_S
        self._rejected, self._rejected_at = 0, -LOG_S  # not logged yet, and when some were
        self._waited_before = self._waiting.kind == "quarantine"  # the last life, for the same
        self._died = self._take_up()
        self.busy = self._is_busy()

    def _take_up(self) -> list[int]:
        """What the last life had on trial; those of it that were in hand when it died."""
        self._aside.retract_left()
        self._trials.in_doubt = self._waiting.kind == "doubt"
        views, handled, latest = self._reader.trials(), self._reader.handled(), time.monotonic() + LONGEST_PAUSE
        for number, view in views.items():
            trial = _trial_of(view)
            # a damaged word must not keep back the events of its key for ever
            trial.due, trial.seen = min(trial.due, latest), min(trial.seen, handled)
            # nor have one set aside for tries that it cannot have had: one more than it may, if it died in doubt
            trial.tries = trial.tries if trial.tries <= self._trials.max_attempts + 1 else 0
            self._trials.add(number, trial)
            if view.state == TRIAL_TAKEN:
                self._aside.take(view)
        if self._trials.in_doubt:
            self._begin_doubt()
        return [number for number, view in views.items() if view.state == TRIAL_DIED]

    def _is_busy(self) -> bool:
        return bool(self._waiting.kind or self._trials.events or self._died)

    # ---- between batches -------------------------------------------------------------------------------------------

    @property
    def patience_ns(self) -> int:
        """How long the worker may sleep for the next batch."""
        if not self.busy:
            return REST_NS
        if self._doubt or self._trials.alone() is not None:
            return 0
        due = self._trials.next_due()
        return REST_NS if due is None else max(0, min(REST_NS, int((due - time.monotonic()) * 1e9)))

    def step(self) -> bool:
        """Whether the next batch may be taken. False: the shard waits, or has tried an event on trial."""
        while self._died:
            number = self._died.pop()
            self._has_died(number, self._death(self._trials.events[number].tries))
        if self._waiting.left > DRAINING_WAIT_S and self._control.state == "draining":
            self._waiting.hurry(DRAINING_WAIT_S)  # who stops the engine wants to know whether it has come back
        if self._waiting.left and not self._may_probe():
            self._control.beat_worker(self._shard)
            time.sleep(min(self._waiting.left, REST_S, self._doubt.fresh_wait if self._doubt else REST_S))
            return False
        if self._doubt:
            if self._doubt.others:
                self._reader.probe(1)
                return True
            self._doubt.others = True  # whatever comes of this one
        elif self._others_next:
            self._others_next = False
            return True
        event = self._trials.ready(time.monotonic(), self._reader.handled())
        if event is None:
            return True
        self._others_next = True
        self._try(event)
        self.busy = self._is_busy()
        return False

    def idle(self) -> None:
        """Nothing but what is on trial is left to be handled."""
        if not self._trials.events and not self._waiting.left:
            # The last life was killed between the row and the word that said so, or waited for its handler to open. A
            # shard that waits gets no slots, so nothing would ever have come that ends it.
            self._waits_no_more()
        elif self._doubt:
            self._next_round()
        elif (event := self._trials.alone()) is not None:
            self._quarantine(event)
        self.busy = self._is_busy()

    def _may_probe(self) -> bool:
        """In doubt, what has just come may end it: a client that sends rubbish must not make others wait for long."""
        doubt = self._doubt
        if doubt is None or time.monotonic() - doubt.tried_at < doubt.fresh_wait:
            return False
        if self._reader.arrived() == doubt.arrived:
            return False
        doubt.others = True
        return True

    # ---- a batch ---------------------------------------------------------------------------------------------------

    def attempt(self, work: Batch) -> None:
        """Hand it to the handler, and see to what comes of it. Raises HandlerError when the worker is to stop,
        BatchEscaped."""
        try:
            self._commit.handle(work)
        except BaseException as error:  # sys.exit and asyncio's cancellation too: it is the event that does it
            end_if_forked(error)
            self.raised(work, error)
            return
        end_if_forked()
        work._end()
        places = b""
        if work._rejected:
            why = {row: Failure("rejected", reason) for row, reason in work._rejected.items()}
            if (found := self._put_aside(why)) is None:
                return
            places = found
        self._commit_all(places)

    def passed(self) -> None:
        """All of the batch in hand was handled before."""
        self._commit_all(b"")

    def _commit_all(self, rejected: bytes) -> None:
        if not self._commit.handled(rejected):
            log.error("shard %d: a frame changed under the batch in hand; its lane moves no further", self._shard)
        if self._batch.suspected:
            # The next may fail and undo it: of 1,000 rows one that failed took 28 s at checkpoint_interval 2 s.
            self._commit.settle()
        if self.busy:
            self._succeeded()

    def is_blamed(self) -> bool:
        """Whether the one event that was in hand, alone, when the last worker died is to be judged. Whoever wants a
        shard to stop at an event that fails does not mean a kill from outside: it comes again, alone."""
        return self._rules.on_error != "stop" or self._batch.tries >= self._rules.max_attempts

    def died(self) -> None:
        """The batch in hand is the one event that was in hand, alone, when the last worker died."""
        failure = self._death(self._batch.tries)
        if (event := self._reader.put_on_trial(self._batch.tries, 0)) is not None:
            self._trials.add(event, _trial_of(self._reader.trial(event)))
            self._has_died(event, failure)
        self.busy = self._is_busy()

    def _has_died(self, event: int, failure: Failure) -> None:
        self._trials.events[event].tries -= 1
        self._has_failed(event, failure, ends_round=True)

    def _death(self, tries: int) -> Failure:
        """Raises HandlerError where the shard is to stop: before the event is on trial, which may end in quarantine."""
        text = f"it was in hand, alone, when the worker died, {plural(tries, 'time')}; the last time: {self._ended}"
        if self._rules.on_error == "stop":
            raise HandlerError(f"an event killed the worker of shard {self._shard}: {text}. {_STAYS}")
        return Failure("death", text)

    # ---- it raised -------------------------------------------------------------------------------------------------

    def raised(self, work: Batch, error: BaseException) -> None:
        """The handler raised. Returns when the next batch may be taken; raises HandlerError when the worker is to
        stop."""
        event, self._in_trial = self._in_trial, None
        if not self._reader.recheck():
            self._give_back(work, error)
            return
        at, rows = work._position(), len(work)
        retry = self._retry_on.retry_of(error)
        has_waited = self._waiting.has_lasted(self._rules.retry_for)
        if retry is not None and event not in self._expired and not has_waited:
            reason, after = retry.reason or "the handler asks for another try later", retry.wait()
            let_go(work, error)
            self._put_back()
            self._wait("retry", reason, after)
            return
        if self._rules.on_error == "stop" and not isinstance(error, Reject):
            raise HandlerError(f"{explain(work, error)}. {_STAYS}") from error
        if rows == 1 and event is None and not self._batch.suspected and self._commit.is_deferring:
            # What is not saved is undone with it, and on trial it would be tried before those of its key among that.
            # They come first once more, each is saved, and then this one comes alone.
            let_go(work, error)
            self._commit.failing()
            self._reader.failed(1)
            self._commit.roll_back()
        elif rows == 1:
            rejected = isinstance(error, Reject)
            failure = Failure("exception", of_error(error), trace_of(error))
            if isinstance(error, Reject):
                failure = Failure("rejected", error.reason, attempts=self._batch.tries + 1)
            self._log_failure(event, failure, work, error)
            let_go(work, error)
            self._commit.failing()
            if rejected:
                self._reject(event, failure)
            else:
                self._failed_alone(event, failure, expired=retry is not None)
        else:
            if not self._batch.suspected and time.monotonic() - self._logged_at > LOG_S:
                self._logged_at = time.monotonic()
                log.warning("%.1000s; the event that does it is looked for", explain(work, error))
            let_go(work, error)
            self._commit.failing()
            self._reader.failed(max(1, at) if at is not None else 0)
            self._commit.roll_back()
        self.busy = self._is_busy()

    def _give_back(self, work: Batch, error: BaseException) -> None:
        """A frame changed under the batch, so it is not the handler's failure. What is left without that lane comes
        again."""
        log.error(
            "shard %d: a frame changed under the handler, which raised %.500s; its lane is left alone, the other "
            "events of the batch come again",
            self._shard,
            of_error(error),
        )
        let_go(work, error)
        self._put_back()

    def _put_back(self) -> None:
        self._commit.failing()
        self._reader.try_later()
        self._commit.roll_back()

    def _failed_alone(self, event: int | None, failure: Failure, *, expired: bool) -> None:
        """expired: it asked for another try later, and has for as long as it may."""
        placed = self._reader.put_on_trial(0 if event is None else self._trials.events[event].tries, 0)
        self._commit.roll_back()
        if placed is None:  # no room: it comes again at once, and the one that has waited longest is tried before
            if (oldest := self._trials.soonest()) is not None:
                self._trials.events[oldest].due = 0.0
            self._others_next = False
            if self._doubt:
                self._next_round()
            return
        if event is None:
            self._trials.add(placed, _trial_of(self._reader.trial(placed)))
        if expired:
            self._expired.add(placed)
        self._has_failed(placed, failure, ends_round=event is None)

    def _has_failed(self, event: int, failure: Failure, ends_round: bool = False) -> None:
        now, trial = time.monotonic(), self._trials.events[event]
        was_in_doubt = self._trials.in_doubt
        verdict = self._trials.failed(event, now, self._reader.handled())
        self._why[event] = failure._replace(attempts=max(1, trial.tries))
        self._store(event)
        if verdict is Verdict.QUARANTINE:
            self._quarantine(event)
        elif verdict is Verdict.DOUBT and not was_in_doubt:
            self._begin_doubt()
            for taken in self._trials.take_back():
                self._reader.take_back(taken)
                self._aside.take(self._reader.trial(taken))
        elif verdict is Verdict.DOUBT and ends_round:
            self._next_round()

    # ---- events on trial -------------------------------------------------------------------------------------------

    def _try(self, event: int) -> None:
        self._commit.settle()  # what fails undoes what was not saved
        if self._trials.is_condemned(event, self._reader.handled()):
            self._quarantine(event)
        elif self._trials.events[event].place is Place.TAKEN:
            self._try_taken(event)
        elif self._reader.trial_waits(event):
            self._trials.events[event].due = time.monotonic() + LOOK_AGAIN_S
        elif self._reader.next_trial(event, self._batch):
            self._in_trial = event
            control = self._control
            if self._commit.take(self._batch):
                self.attempt(
                    Batch(control.schema, control.slots, self._shard, self._batch, self._scratch, control.partitions)
                )
            else:
                self.passed()
            if self._in_trial == event:  # it was handled, or cannot be set aside yet
                self._in_trial = None
        else:
            self._end(event)

    def _end(self, event: int) -> None:
        """It is on trial no more, and no row of it is in hand."""
        self._forget(event)
        self._reader.end_trial(event)

    def _forget(self, event: int) -> None:
        self._trials.end(event)
        self._why.pop(event, None)
        self._expired.discard(event)

    def _store(self, event: int) -> None:
        trial, state = self._trials.events[event], _STATES[self._trials.events[event].place]
        self._reader.set_trial(event, state, trial.tries, int(trial.due * 1e9))

    def _succeeded(self) -> None:
        """Something was handled: nothing waits any more, and there is a witness."""
        if self._in_trial is not None:
            self._end(self._in_trial)
            self._in_trial = None
        for confirmed in self._trials.succeeded(time.monotonic()):
            self._reader.set_trial(confirmed, TRIAL_NONE, 0, 0)
            self._forget(confirmed)
        if self._waiting.kind and self._waiting.age > LOG_S:
            log.info("shard %d: events are handled again, after %.3g s", self._shard, self._waiting.age)
        self._waits_no_more()
        self.busy = self._is_busy()

    def _waits_no_more(self) -> None:
        if self._waiting.kind:
            self._waiting.over()
        if self._doubt:
            self._doubt = None
            self._trials.in_doubt = False
            self._reader.probe(0)
            for event in self._trials.events:
                self._store(event)

    def _wait(self, kind: str, reason: str, after: float | None = None) -> None:
        wait = self._waiting.begin(kind, reason, after)
        self.busy = True
        if time.monotonic() - self._told_at > LOG_S and (self._waiting.tries == 1 or wait > SAID_EACH_S):
            self._told_at = time.monotonic()
            log.warning("shard %d waits, and tries again in %.3g s: %.1000s", self._shard, wait, reason)

    # ---- doubt -----------------------------------------------------------------------------------------------------

    def _begin_doubt(self) -> None:
        self._doubt = _Doubt()
        self._waiting.doubt()

    def _next_round(self) -> None:
        """Both halves of this one were in vain."""
        doubt = self._doubt
        assert doubt is not None
        doubt.others, doubt.tried_at, doubt.arrived = False, time.monotonic(), self._reader.arrived()
        doubt.fresh_wait = min(FRESH_S, doubt.fresh_wait * 2)
        last = list(self._why.values())[-1].reason if self._why else "the last worker did not live to say why"
        self._wait(
            "doubt", f"{plural(len(self._trials.events), 'event')} in a row failed, so it is not the events: {last}"
        )

    # ---- setting aside ---------------------------------------------------------------------------------------------

    def _quarantine(self, event: int) -> None:
        """By the verdict on it."""
        self._commit.settle()  # the lanes are gone over again from their heads
        reader, trial = self._reader, self._trials.events[event]
        tries = plural(trial.tries, "time")
        why = self._why.get(event) or Failure("exception", f"it failed {tries}; the worker that saw why is gone")
        if trial.place is Place.TAKEN:
            self._aside.give_back(reader.trial(event))
            reader.end_taken(event, handled=False)
            self._trials.quarantined(event, time.monotonic(), reader.handled())
            self._forget(event)
            return
        if not reader.next_trial(event, self._batch):
            self._end(event)
            return
        if not self._commit.take(self._batch):
            self.passed()
            self._end(event)
            return
        if self._put_aside({0: why}) is None:
            return
        for_good = self._trials.quarantined(event, time.monotonic(), reader.handled())
        if not for_good:
            self._store(event)  # before its row is done: a successor tells by that which of the two it is
        reader.set_aside()
        self._commit.set_aside()
        if for_good:
            self._end(event)
        else:
            reader.rescan()

    def _reject(self, event: int | None, failure: Failure) -> None:
        if self._put_aside({0: failure}) is None:
            return
        self._reader.set_aside()
        if event is not None:
            self._end(event)
        self._commit.roll_back()
        self._commit.set_aside()
        if self.busy:  # a handler that rejects does what it should
            self._succeeded()

    def _put_aside(self, why: dict[int, Failure]) -> bytes | None:
        """Rows of the batch in hand into the quarantine file. None: it takes no more, and the batch was put back."""
        try:
            places, entries = self._aside.add(self._batch, why)
        except (ShardmemError, BufferError) as error:
            # BufferError: a frame changed since it was found good; when it comes again it is, or its lane is broken
            self._reader.recheck()
            self._put_back()
            if isinstance(error, ShardmemError):
                self._wait("quarantine", str(error))
                self._expect_quarantine(error)
            return None
        self._waited_before = False
        if self._waiting.kind == "quarantine":
            self._waiting.over()
        self._log_aside(entries)
        return places

    def _expect_quarantine(self, error: ShardmemError) -> None:
        """It may be this process that cannot use it, with the limits or the user that a handler has given it. So the
        next life tries, once, and waits if it cannot either."""
        if self._rules.on_error == "stop" or isinstance(error, QuarantineFull) or self._waited_before:
            return
        if self._waiting.tries < ANOTHER_AFTER:
            return
        raise error

    def _log_aside(self, entries: list[Entry]) -> None:
        """What was rejected, of which a client may send thousands, no more often than LOG_S: all of it is listed in the
        quarantine."""
        if entries[0].kind == "rejected":
            self._rejected += len(entries)
            if time.monotonic() - self._rejected_at < LOG_S:
                return
            others, self._rejected, self._rejected_at = self._rejected - 1, 0, time.monotonic()
            more = f", as {'is' if others == 1 else 'are'} {plural(others, 'other')} rejected since" if others else ""
            entries = entries[-1:]
        else:
            more = ""
        for entry in entries:
            log.error(
                "shard %d: the event with key %s, sequence %d of producer %d, is in quarantine after %s%s: %.500s",
                self._shard,
                short(entry.key),
                entry.sequence,
                entry.seat,
                plural(entry.attempts, "attempt"),
                more,
                entry.reason,
                extra={"slot": entry.slot, "seat": entry.seat},
            )

    def _log_failure(self, event: int | None, failure: Failure, work: Batch, error: BaseException) -> None:
        if event is None and time.monotonic() - self._logged_at > LOG_S:
            self._logged_at = time.monotonic()
            log.warning("%.1000s", explain(work, error))

    # ---- taken back ------------------------------------------------------------------------------------------------

    def _try_taken(self, event: int) -> None:
        """From the quarantine: it is in no lane any more."""
        reader = self._reader
        found = self._aside.taken(reader.trial(event))
        if found is None:  # purged: it stays what it was
            reader.end_taken(event, handled=False)
            self._forget(event)
            return
        work = found[1]
        slots = work.slots.tolist() if found[0].key is not None else []
        reader.begin_taken(event)
        self._commit.enter(found[0].slot)
        try:
            self._commit.handle(work)
        except BaseException as error:
            end_if_forked(error)
            reader.done_taken(handled=False)
            self._taken_failed(event, work, error, slots)
            return
        end_if_forked()
        work._end()
        reader.done_taken(handled=True)
        self._commit.touch(slots)
        self._commit.settle()
        trial = reader.trial(event)
        reader.end_taken(event, handled=True)
        self._aside.remove(trial)
        self._forget(event)
        self._succeeded()

    def _taken_failed(self, event: int, work: Batch, error: BaseException, slots: list[int]) -> None:
        retry, rejected = self._retry_on.retry_of(error), isinstance(error, Reject)
        reason = of_error(error) if retry is None else retry.reason
        failure, after = Failure("exception", reason, trace_of(error)), None if retry is None else retry.wait()
        let_go(work, error)
        self._commit.touch(slots)
        self._commit.roll_back()
        if retry is not None:
            self._wait("retry", reason, after)
        elif rejected:
            self._quarantine(event)
            self._succeeded()
        else:
            self._has_failed(event, failure)
        self.busy = self._is_busy()

    def leave(self) -> None:
        """The engine stops: what was taken back is in the quarantine again, where somebody finds it."""
        if self._control.state not in ("draining", "stopped"):
            return
        for event, trial in list(self._trials.events.items()):
            if trial.place is Place.TAKEN:
                self._quarantine(event)


_STAYS = "The events of this batch stay in shared memory and will be handed out again"
_STATES = {Place.LANE: TRIAL_WAITS, Place.ASIDE: TRIAL_ASIDE, Place.TAKEN: TRIAL_TAKEN}
_PLACES = {TRIAL_ASIDE: Place.ASIDE, TRIAL_TAKEN: Place.TAKEN}


def _trial_of(view: TrialView) -> Trial:
    place = _PLACES.get(view.state, Place.LANE)
    return Trial(view.number, view.hash or None, view.seen, view.tries, view.due_ns / 1e9, place)
