"""What the site does to the pages, which are read as plain files too: examples are part of it, and the commands are
asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

from shardmem.console.cli import main

TREE = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: Any) -> Files:
    """The examples are part of the site."""
    for path in sorted((TREE / "examples").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files.append(File.generated(config, str(path.relative_to(TREE)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """A folder of examples becomes links to its files; the mark in cli.md becomes what each command says of itself."""

    def folder(match: re.Match[str]) -> str:
        inside = sorted(path for path in (TREE / match[2]).iterdir() if path.is_file())
        return f"{match[1]} ({', '.join(f'[{path.name}]({path.relative_to(TREE)})' for path in inside)})"

    markdown = re.sub(r"\[([^]]*)\]\(\.\./(examples/[\w-]+)\)", folder, markdown)
    markdown = markdown.replace("](../examples/", "](examples/")
    return markdown.replace("<!-- commands -->", "\n".join(_said(main, "shardmem", None)))


def _said(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent, max_content_width=80, terminal_width=80)
    path = context.command_path
    yield f"## {path} {{: #{path.replace(' ', '-')} }}\n\n```text\n{command.get_help(context)}\n```\n"
    for inner, each in sorted(getattr(command, "commands", {}).items()):
        yield from _said(each, inner, context)
