"""Every code block of README.md and docs/ is run, page by page; see blocks.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from .blocks import Page, blocks_of, commands_of, renamed

TREE = Path(__file__).resolve().parents[2]
WRITTEN = {"settings.md", "metrics.md", "cli.md", "api.md"}  # from the code, each with a test of its own
WITH_POSTGRESQL = {"postgresql.md"}
PAGES = [TREE / "README.md", *sorted(path for path in (TREE / "docs").glob("*.md") if path.name not in WRITTEN)]


def has_something_to_run(path):
    return any(
        block.title or block.language in ("python", "sh", "console", "toml")
        for block in blocks_of(path.name, path.read_text(encoding="utf-8"))
    )


@pytest.mark.parametrize("path", [path for path in PAGES if has_something_to_run(path)], ids=lambda path: path.name)
def test_what_the_page_says_to_do_can_be_done(path, tmp_path, engine_name, make_engine_name, request):
    page = Page(str(path.relative_to(TREE)), path.read_text(encoding="utf-8"), tmp_path, make_engine_name)
    if path.name in WITH_POSTGRESQL:
        server = request.getfixturevalue("postgresql_server")
        page.run(programs=server.programs, **server.environ)
    else:
        page.run(KAFKA_PASSWORD="of the broker")  # as whoever follows it has set it


def page(text, tmp_path):
    return Page("page.md", text, tmp_path, lambda name: f"u-{name}")


def test_a_script_that_fails_fails_its_page_and_says_where(tmp_path):
    with pytest.raises(AssertionError, match=r"page.md:6 ended with 1(?s:.*)ZeroDivisionError"):
        page("words\n```sh\ntrue\n```\n```python\n1 / 0\n```\n", tmp_path).run()


def test_a_command_that_prints_something_else_fails_its_page(tmp_path):
    page("```console\n$ echo one two; false\none ...\n$ echo \\\n  three\nthree\n```\n", tmp_path).run()
    with pytest.raises(AssertionError, match="is said to print"):
        page("```console\n$ echo one\ntwo\n```\n", tmp_path).run()


def test_a_page_that_leaves_a_command_running_fails(tmp_path):
    with pytest.raises(AssertionError, match="leaves 1 commands running"):
        page("```sh\ncat < /dev/zero > /dev/null &\n```\n", tmp_path).run()


def test_configuration_that_is_not_accepted_fails_its_page(tmp_path):
    page('```toml\nname = "x"\nslots = 64\n```\n', tmp_path).run()
    with pytest.raises(AssertionError, match="slot is not a setting"):
        page('```toml\nname = "x"\nslot = 64\n```\n', tmp_path).run()


def test_files_are_written_when_it_is_their_turn_and_scripts_see_them(tmp_path):
    read = "```python\nimport app\nassert app.x == {}\n```\n"
    page(
        '```python title="app.py"\nx = 1\n```\n'
        + read.format(1)
        + '```python title="app.py"\nx = 2\n```\n'
        + read.format(2),
        tmp_path,
    ).run()


def test_the_names_of_engines_are_replaced_everywhere_and_nothing_else_is():
    text, names = renamed(
        'name = "clicks"\nshardmem status clicks; cat clicks.csv click my-clicks', lambda name: f"u-{name}"
    )

    assert text == 'name = "u-clicks"\nshardmem status u-clicks; cat u-clicks.csv click my-clicks' and names == [
        "u-clicks"
    ]


def test_every_block_of_every_page_says_what_it_is():
    known = {"python", "sh", "console", "toml", "text", "json", "yaml", "ini", "dockerfile", "csv", "promql"}
    unknown = [
        f"{block.place}: {block.language or 'no language'}"
        for path in PAGES
        for block in blocks_of(path.name, path.read_text(encoding="utf-8"))
        if block.language not in known
    ]

    assert not unknown, "\n".join(unknown)


def test_a_console_block_begins_with_a_command():
    (block,) = blocks_of("page.md", "```console\nwords\n```\n")
    with pytest.raises(ValueError, match="page.md:2: a console block begins with a command"):
        list(commands_of(block))
