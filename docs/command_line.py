"""Puts the help of every command where a page has `MARK`, as the terminal shows it."""

from typing import Any

import click

from sdv_nvib.cli import main

MARK = '<!-- command line -->'


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    if MARK not in markdown:
        return markdown
    settings = {**main.context_settings, 'terminal_width': 100}
    frame = click.Context(main, info_name='sdv-nvib', **settings)
    shown = [frame]
    shown += [click.Context(main.commands[name], frame, name) for name in sorted(main.commands)]
    helps = [f'### {one.command_path}\n\n```text\n{one.get_help()}\n```\n' for one in shown]
    return markdown.replace(MARK, '\n'.join(helps))
