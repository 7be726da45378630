"""Turns the pages' LaTeX into MathML, which browsers draw by themselves: no script, no network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace what pymdownx.arithmatex has marked."""

    def formula(match: re.Match[str]) -> str:
        tag, bracket, latex = match.groups()
        display = 'block' if bracket == '[' else 'inline'
        math = convert(html.unescape(latex), display=display)
        return f'<{tag} class="formula">{math}</{tag}>'

    return FORMULA.sub(formula, content)
