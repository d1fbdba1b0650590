"""Builds sdist and wheel, builds a wheel from the sdist elsewhere, installs it in a new environment and uses it.

python tests/dist.py SOURCE_TREE EMPTY_DIRECTORY
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import venv
from pathlib import Path


def run(*command: object, cwd: Path) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, cwd=cwd)


def only(directory: Path, pattern: str) -> Path:
    found = list(directory.glob(pattern))
    assert 1 == len(found), f"{pattern} in {directory}: {found}"
    return found[0]


def main(source: Path, work: Path) -> None:
    run(sys.executable, "-m", "build", "--sdist", "--wheel", "--outdir", work / "dist", source, cwd=work)
    wheel = only(work / "dist", "*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", *(work / "dist").iterdir(), cwd=work)
    version = re.search(r'__version__ = "(.+)"', (source / "shardmem" / "__init__.py").read_text())
    assert version and wheel.name.startswith(f"shardmem-{version[1]}-"), wheel.name
    assert "-cp310-abi3-linux_" in wheel.name, wheel.name
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
    run(python, "-m", "pip", "install", "--quiet", only(work / "again", "*.whl"), cwd=work)
    run(python, source / "tests" / "wheel.py", cwd=work)
    run(work / "fresh" / "bin" / "shardmem", "--version", cwd=work)
    print("dist: 1 passed, 0 failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
