"""What a producer pays for importing shardmem."""

from __future__ import annotations

import subprocess
import sys

import shardmem


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_a_producer_imports_nothing_of_the_daemon_or_the_console():
    loaded = loaded_after("import shardmem; shardmem.connect; shardmem.Producer; shardmem.Handler")

    assert not {name for name in loaded if name.split(".")[0] in ("click", "rich", "psutil", "asyncio", "tomllib")}
    assert not {name for name in loaded if name.startswith(("shardmem.control", "shardmem.console", "shardmem.policy"))}


def test_importing_the_package_alone_loads_no_module_of_it():
    assert not {name for name in loaded_after("import shardmem") if name.startswith("shardmem.")}


def test_the_worker_imports_nothing_of_the_daemon_or_the_console():
    loaded = loaded_after("import shardmem.runtime.worker")

    assert not {name for name in loaded if name.split(".")[0] in ("click", "rich", "psutil", "asyncio")}


def test_a_worker_waits_for_no_import_that_only_state_or_the_supervisor_needs():
    loaded = loaded_after("import shardmem.runtime.worker")

    assert not loaded & {"msgspec", "shardmem.config", "shardmem.policy.mapper", "shardmem.runtime.checkpoint"}


def test_every_public_name_can_be_imported_and_the_list_is_sorted():
    assert sorted(shardmem.__all__) == shardmem.__all__
    for name in shardmem.__all__:
        assert getattr(shardmem, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    try:
        shardmem.nothing_of_that_name
    except AttributeError as error:
        assert "nothing_of_that_name" in str(error)
    else:
        raise AssertionError("no error")
