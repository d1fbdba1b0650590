"""hyperq: a ring in shared memory under a process-shared mutex and condition variables, bytes in and out."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from bench.harness import Contender, Trial
from bench.rivals import BARE, BUFFER, unimportable


class HyperQ(Contender):
    name = "hyperq"
    pip = "hyperq"
    forms = {"records": "joined", "columns": "joined", "push": "single", "latency": "single"}
    note = f"hyperq: {BARE}; order only where one process reads"

    def missing(self) -> str | None:
        return unimportable("hyperq")

    def setup(self, trial: Trial) -> None:
        from hyperq import BytesHyperQ

        self.shared_name = trial.tag[:28]  # its limit
        self.queue = BytesHyperQ(BUFFER, self.shared_name)

    def sender(self, trial: Trial, index: int) -> Callable[[Any], Any]:
        return self._attach().put

    def receiver(self, trial: Trial, index: int) -> Callable[..., Any]:
        return self._attach().get

    def _attach(self) -> Any:
        from hyperq import BytesHyperQ

        return BytesHyperQ(self.shared_name)

    def teardown(self) -> None:
        # The last user's destructor would unlink them, but forked processes end without destructors.
        for name in (self.shared_name, f"b_{self.shared_name}"):
            with suppress(FileNotFoundError):
                os.unlink(f"/dev/shm/{name}")


CONTENDERS = [HyperQ()]
