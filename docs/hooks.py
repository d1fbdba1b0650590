"""What the site does to the pages, which are read as plain files too: links to `../examples/` and to the tree lead to copies."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

TREE = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: Any) -> Files:
    """The examples are part of the site."""
    for path in sorted((TREE / "examples").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files.append(File.generated(config, str(path.relative_to(TREE)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """A folder of examples becomes links to its files."""
    def folder(match: re.Match[str]) -> str:
        inside = sorted(path for path in (TREE / match[2]).iterdir() if path.is_file())
        return f"{match[1]} ({', '.join(f'[{path.name}]({path.relative_to(TREE)})' for path in inside)})"

    markdown = re.sub(r"\[([^]]*)\]\(\.\./(examples/[\w-]+)\)", folder, markdown)
    return markdown.replace("](../examples/", "](examples/")
