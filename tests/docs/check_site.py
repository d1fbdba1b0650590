"""What the built site must be: it fetches nothing from elsewhere, and what is written from the code is there."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import shardmem
from shardmem.console.cli import main


class Fetched(HTMLParser):
    """What a browser fetches by itself for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag in ("script", "img", "iframe", "source") or (
            tag == "link" and given.get("rel") not in ("canonical", "next", "prev")
        ):
            self.places += [given[name] or "" for name in ("src", "href") if given.get(name)]


def faults(site: Path) -> list[str]:
    found = []
    pages = sorted(set(site.glob("*.html")) - {site / "404.html"})  # which is served at any depth, so from the root
    for page in pages:
        fetched = Fetched()
        fetched.feed(page.read_text(encoding="utf-8"))
        for place in fetched.places:
            if re.match(r"(https?:)?//", place):
                found.append(f"{page.name} fetches {place}")
            elif not place.startswith("data:") and not (page.parent / place.split("?")[0].split("#")[0]).exists():
                found.append(f"{page.name} shows {place}, which is not there")
    headings = {name: (site / f"{name}.html").read_text(encoding="utf-8") for name in ("api", "cli")}
    found += [
        f"api.html says nothing about shardmem.{name}"
        for name in shardmem.__all__
        if name != "__version__" and f'id="shardmem.{name}"' not in headings["api"]
    ]
    found += [
        f"cli.html says nothing about shardmem {name}"
        for name in main.commands
        if f'id="shardmem-{name}"' not in headings["cli"]
    ]
    return found if pages else [f"{site} has no pages"]


if __name__ == "__main__":
    complaints = faults(Path(sys.argv[1]))
    print("\n".join(complaints) or "the site is whole")
    sys.exit(bool(complaints))
