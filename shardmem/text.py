"""Numbers, lists, errors and what users wrote in sentences: one way to write each."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar, cast

Document = TypeVar("Document")

ERROR_CHARS = 10_000  # of an error's text that anybody gets to see


def of_error(error: BaseException) -> str:
    """ValueError: what it says. Whatever its class does when it is asked, and in characters that can be encoded."""
    try:
        name = type(error).__name__
    except Exception:  # a metaclass may do as it likes
        name = "Exception"
    said = _said(error)
    return f"{name}: {said}" if said else str(name)


def _said(value: object) -> str:
    try:
        text = str(value)
    except Exception as second:
        text = f"(its text cannot be had: __str__ raised {type(second).__name__})"
    if len(text) > ERROR_CHARS:
        text = f"{text[:ERROR_CHARS]}... ({len(text):,} characters)"
    return text.encode(errors="backslashreplace").decode()


def reason_of(reason: object) -> str:
    """What somebody gives as a reason, as text."""
    return of_error(reason) if isinstance(reason, BaseException) else _said(reason)


def plural(number: int, what: str) -> str:
    """1 event, 2 events."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def size(number: float) -> str:
    """1536 -> 1.5 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"


def listed(members: Collection[object], most: int = 8) -> str:
    """1, 2, 3 and 4 more."""
    more = f" and {len(members) - most} more" if len(members) > most else ""
    return ", ".join(map(str, list(members)[:most])) + more


def named(what: str, numbers: Collection[int | str], most: int = 4) -> str:
    """shard 1, shards 1, 2."""
    return f"{what}{'s' * (len(numbers) > 1)} {listed(numbers, most)}"


def printable(text: str) -> str:
    """One line that moves no cursor, changes no title and forges no line, wherever the text is from: each character
    that is not printable is written as Python would."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def printable_lines(text: str, indent: str = "") -> str:
    """The same of text that may have several lines. indent: of all but the first, where a line of its own would be
    taken for somebody else's."""
    return f"\n{indent}".join(map(printable, text.split("\n")))


def cleaned(document: Document) -> Document:
    """A status document for a terminal: each text in it is one printable line."""
    return cast(Document, _cleaned(document))


def _cleaned(value: object) -> object:
    if isinstance(value, str):
        return printable(" ".join(value.split()))
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(each) for key, each in value.items()}
    return [_cleaned(each) for each in value] if isinstance(value, list) else value
