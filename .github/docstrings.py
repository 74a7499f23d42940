"""Docstrings as Markdown for the site: the sections of Args and so on become lists."""

import re
from typing import Any

from griffe import Extension, Object

_HEADS = "Args|Attributes|Returns|Raises|Reference|References"


def as_markdown(docstring: str) -> str:
    """The docstring with its sections as Markdown.

    >>> print(as_markdown('''Sums.
    ...
    ... Args:
    ...   z, y: features,
    ...     and more.
    ... Returns: The sum.'''))
    Sums.
    <BLANKLINE>
    **Args**
    <BLANKLINE>
    - `z, y`: features, and more.
    <BLANKLINE>
    **Returns** The sum.
    """
    lines, listing = [], False
    for line in _fenced(docstring).splitlines():
        head = re.fullmatch(rf"({_HEADS}):(.*)", line)
        item = re.fullmatch(r"  ([*\w., `-]+?): (.*)", line)
        if head:
            listing = not head[2]
            lines += ["", f"**{head[1]}**{head[2]}", *([""] * listing)]
        elif listing and item:
            lines.append(f"- `{item[1].replace('`', '')}`: {item[2]}")
        elif line.startswith("  ") and lines and lines[-1].startswith(("- ", "**")):
            lines[-1] += f" {line.strip()}"
        else:
            listing = listing and bool(line.strip())
            lines.append(line)
    text = "\n".join(lines)
    return re.sub(r"\n{3,}", "\n\n", text)


def _fenced(text: str) -> str:
    """With each example in a fence, up to the blank line after it."""
    return re.sub(
        r"^>>> (?:.|\n(?!\n))+", lambda found: f"```pycon\n{found[0]}\n```", text, flags=re.M
    )


class Docstrings(Extension):
    """Rewrites every docstring that is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe for each object, once its docstring is known."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
