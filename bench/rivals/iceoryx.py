"""iceoryx2: publish and subscribe without copies between processes, one service per pair.

Nothing is dropped (no overflow, the publisher retries). A subscriber has no blocking receive: it polls
and yields, except in the latency case, where it is woken through an event service as a program would
that does not want to burn a core.

The event's bytes are copied once into the loaned sample, since they exist as Python bytes; the
consumer of joined events reads them in place. There is no batch call, hence the joined form.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

from bench.harness import BATCH, Contender, Trial
from bench.rivals import BARE, unimportable


class Iceoryx2(Contender):
    name = "iceoryx2"
    pip = "iceoryx2"
    forms = {"records": "joined", "columns": "joined", "push": "single", "latency": "single"}
    note = f"iceoryx2: {BARE}; no receive that blocks"

    def missing(self) -> str | None:
        return unimportable("iceoryx2")

    def _service(self, trial: Trial, index: int) -> Any:
        import iceoryx2 as iox2

        iox2.set_log_level(iox2.LogLevel.Error)
        size = trial.size * (BATCH if trial.form == "joined" else 1)
        self.size = size
        self.node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
        name = iox2.ServiceName.new(f"{trial.tag}/{index}")
        # A fixed size: the sample of a slice costs the publisher more calls.
        payload = type("Payload", (ctypes.Structure,), {"_fields_": [("data", ctypes.c_uint64 * (size // 8))]})
        self.listener = self.notifier = self.wakes = None
        if trial.kind == "latency":
            self.wakes = self.node.service_builder(name).event().open_or_create()
        return (
            self.node.service_builder(name)
            .publish_subscribe(payload)
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(64 if trial.form == "joined" else 1024)
            .subscriber_max_borrowed_samples(2)
            .open_or_create()
        )

    def sender(self, trial: Trial, index: int) -> Callable[[Any], Any]:
        import iceoryx2 as iox2

        service = self._service(trial, index)
        wait = iox2.BackpressureStrategy.RetryUntilDelivered
        self.publisher = service.publisher_builder().backpressure_strategy(wait).create()
        self.subscriber = None
        loan, size, move = self.publisher.loan_uninit, self.size, ctypes.memmove

        def put(message: bytes) -> None:
            sample = loan()
            move(sample.payload_ptr, message, size)
            sample.assume_init().send()

        if trial.kind != "latency":
            return put
        self.notifier = self.wakes.notifier_builder().create()
        notify = self.notifier.notify

        def put_and_wake(message: bytes) -> None:
            put(message)
            notify()

        return put_and_wake

    def receiver(self, trial: Trial, index: int) -> Callable[..., Any]:
        service = self._service(trial, index)
        self.publisher = None
        self.subscriber = service.subscriber_builder().create()
        receive, size, pause = self.subscriber.receive, self.size, os.sched_yield
        if trial.kind == "latency":
            self.listener = self.wakes.listener_builder().create()
            pause = self.listener.blocking_wait
        view = ctypes.c_uint8 * size
        held: Any = None

        def get_copy() -> bytes:
            while (sample := receive()) is None:
                pause()
            return ctypes.string_at(sample.payload_ptr, size)

        def get_view() -> Any:
            nonlocal held  # a sample's memory is ours until the next one has come
            while (sample := receive()) is None:
                pause()
            held = sample
            return view.from_address(sample.payload_ptr)

        return get_view if trial.form == "joined" else get_copy

    def settle(self) -> None:
        # Both ends must look for each other before the first sample: some were lost otherwise.
        if self.publisher is not None:
            self.publisher.update_connections()
        if self.subscriber is not None:
            assert self.subscriber.receive() is None

    def close(self) -> None:
        # Forked processes end without destructors, which would leave the node's files behind.
        for end in (self.publisher, self.subscriber, self.notifier, self.listener):
            if end is not None:
                end.delete()
        del self.wakes, self.node


CONTENDERS = [Iceoryx2()]
