"""Holds the numbers of Markdown pages against the summaries that they came from: `scripts/docs --check`.

An experiment keeps the summaries of the runs that its README tells of in `results/NAME.json`, and its
`prose.py` says which number is which entry of them:

    def said(run):          # run("digits") is results/digits.json
        yield "the loss falls with slope {:.3f} ± {:.3f}", mean, deviation

    SETTINGS = (...)        # fragments of the page whose numbers are choices, definitions or theory
    UNKEPT = {...}          # why no summary holds a figure: fragments with such figures

A text must stand on the page once, with the values as the summary gives them, and every number of the
page outside of code, links and formulas must be a value of some text, or in such a fragment.
Pages that belong to no experiment have their texts in `pages.py`, beside this file. Numbers in the text of a
guide stand in what the guide prints, or there.
"""

import importlib
import json
import re
import string
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What is no prose: blocks and spans of code, addresses, numbers of papers, formulas, tags.
_CODE = re.compile(
    r"^```.*?^```|^#+ \d\.|`[^`\n]*`|\]\([^)]*\)|https?://\S+|arXiv [\d.]+[\d](?:(?: and|,) \d{4}\.\d{5})*|\$[^$\n]+\$|<[^>\n]+>",
    re.S | re.M,
)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?!\d)")
_VALUE = r"([-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?)"


@dataclass
class Page:
    """A page, and which of its numbers are accounted for."""

    path: str
    text: str
    checked: set[int] = field(default_factory=set)
    settings: set[int] = field(default_factory=set)
    unkept: set[int] = field(default_factory=set)
    missing: str = ""  # the first summary that is not kept
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.text = self.text.replace("−", "-")  # of one length, so that places stay
        prose = _CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), self.text)
        self.numbers = [found.span() for found in _NUMBER.finditer(prose)]

    def fault(self, place: int, words: str) -> None:
        """Notes what is wrong, with the line."""
        self.faults.append(f"{self.path}:{self.text.count(chr(10), 0, place) + 1}: {words}")

    def within(self, start: int, end: int) -> set[int]:
        """The numbers that lie between two places."""
        return {i for i, (a, b) in enumerate(self.numbers) if a < end and b > start}

    def says(self, template: str, *values: object) -> None:
        """Checks that a text stands on the page once, with these values."""
        wanted, pattern, exact = _written(template, values)
        found = list(re.finditer(pattern, self.text))
        if len(found) != 1:
            times = "nowhere" if not found else f"{len(found)} times"
            found_exactly = list(re.finditer(exact, self.text))
            if len(found_exactly) != 1:
                self.faults.append(
                    f"{self.path}: {times} on the page, to be there once: {wanted!r}"
                )
                return
            found = found_exactly
            groups = re.compile(_grouped(template, values)).match(self.text, found[0].start())
        else:
            groups = found[0]
        assert groups is not None
        said = re.sub(r"\s+", " ", groups[0])
        if not re.fullmatch(exact, groups[0]):
            self.fault(groups.start(), f"says {said!r}, the summary {wanted!r}")
        for number in range(1, (groups.re.groups or 0) + 1):
            self.checked |= self.within(*groups.span(number))

    def declare(self, into: set[int], fragments: Iterable[str]) -> None:
        """Notes numbers that are no results, or whose summary is not kept."""
        for fragment in fragments:
            pattern = _spaced(fragment.replace("−", "-"))
            found = list(re.finditer(pattern, self.text))
            if not found:
                self.faults.append(f"{self.path}: nowhere on the page: {fragment!r}")
            for one in found:
                into |= self.within(*one.span())

    def tell_unknown(self) -> None:
        """Notes the numbers of which nothing says where they are from."""
        known = self.checked | self.settings | self.unkept
        for i, (start, end) in enumerate(self.numbers):
            if i not in known:
                around = re.sub(r"\s+", " ", self.text[max(start - 40, 0) : end + 30])
                self.fault(
                    start, f"nothing says where {self.text[start:end]} is from: ...{around}..."
                )


def _spaced(text: str) -> str:
    """An expression for a text in which any white space stands for any other."""
    return r"\s+".join(map(re.escape, re.split(r"\s+", text)))


def _shown(value: object, spec: str) -> str:
    text = format(value, spec).replace("−", "-")
    return re.sub(r"e([-+])0*(\d)", lambda e: f"e{e[1].strip('+')}{e[2]}", text)


def _parts(template: str, values: tuple[object, ...]) -> Iterator[tuple[str, object, str | None]]:
    left = list(values)
    for literal, name, spec, _ in string.Formatter().parse(template.replace("−", "-")):
        if name is None:
            yield literal, None, None
        else:
            if name or not left:
                raise ValueError(f"fields have no names, and a value each: {template!r}")
            yield literal, left.pop(0), spec
    if left:
        raise ValueError(f"there are more values than fields: {template!r}")


def _written(template: str, values: tuple[object, ...]) -> tuple[str, str, str]:
    """The text with its values; expressions for it with any values, and with these."""
    wanted = exact = ""
    for literal, value, spec in _parts(template, values):
        wanted += literal
        exact += _spaced(literal)
        if spec is not None:
            shown = _shown(value, spec)
            wanted += shown
            exact += _spaced(shown)
    return wanted, _grouped(template, values), exact + r"(?![\d])"


def _grouped(template: str, values: tuple[object, ...]) -> str:
    pattern = ""
    for literal, value, spec in _parts(template, values):
        pattern += _spaced(literal)
        if spec is not None:
            pattern += r"([^|\n]*?)" if isinstance(value, str) else _VALUE
    return pattern + r"(?![\d])"


@cache
def _summary(name: str, own: str = "") -> Any:
    """A kept summary, EXPERIMENT/RUN, or RUN of the page's own experiment."""
    experiment, _, run = name.rpartition("/")
    experiment = experiment or own
    return json.loads((ROOT / "experiments" / experiment / "results" / f"{run}.json").read_text())


def check_page(
    path: str,
    text: str,
    said: Callable[[Callable[[str], Any]], Iterable[tuple[Any, ...]]] | None = None,
    settings: Iterable[str] = (),
    unkept: Mapping[str, Iterable[str]] | None = None,
    run: Callable[[str], Any] = _summary,
) -> Page:
    """Checks a page.

    Args:
      path: of the page, for messages.
      text: the page.
      said, settings, unkept: see above; without them the page must have no numbers.
      run: gives a summary by its name.
    Returns: the page with what was found.
    """
    page = Page(path, text)
    try:
        for template, *values in said(run) if said is not None else ():
            page.says(template, *values)
    except FileNotFoundError as error:
        page.missing = Path(error.filename).name
        page.faults.append(f"{path}: there is no summary {page.missing}")
    page.declare(page.settings, settings)
    for fragments in (unkept or {}).values():
        page.declare(page.unkept, fragments)
    page.tell_unknown()
    return page


def check_guide(path: Path, claims: Any) -> Page:
    """Checks a notebook: numbers of its text against what its cells print."""
    cells = json.loads(path.read_text())["cells"]
    text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    printed = "".join(
        "".join(output.get("text", ())) for cell in cells for output in cell.get("outputs", ())
    )
    page = Page(str(path.relative_to(ROOT)), text)
    known = {found[0] for found in _NUMBER.finditer(printed.replace("−", "-"))}
    page.checked = {i for i, (a, b) in enumerate(page.numbers) if page.text[a:b] in known}
    page.declare(page.settings, getattr(claims, "SETTINGS", ()))
    page.tell_unknown()
    return page


def again(name: str, text: str) -> Page:
    """Checks a page of the repository, by its path, with this text."""
    run: Callable[[str], Any] = _summary
    path = ROOT / name
    claims: Any = importlib.import_module("pages").PAGES.get(name)
    if name.startswith("experiments/") and (path.parent / "prose.py").is_file():
        own = path.parent.name
        claims = importlib.import_module(f"experiments.{own}.prose")
        run = partial(_summary, own=own)
    said, settings, unkept = (
        getattr(claims, part, None) for part in ("said", "SETTINGS", "UNKEPT")
    )
    return check_page(name, text, said, settings or (), unkept or {}, run)


def pages() -> Iterator[Page]:
    """Every page of the repository, checked."""
    sys.path.insert(0, str(ROOT))
    others = importlib.import_module("pages").PAGES
    for path in sorted((ROOT / "experiments" / "guides").glob("*.ipynb")):
        yield check_guide(path, others.get(str(path.relative_to(ROOT))))
    for path in sorted(ROOT.rglob("*.md")):
        if not {".git", ".venv", "build", "runs", "results"} & set(path.relative_to(ROOT).parts):
            yield again(str(path.relative_to(ROOT)), path.read_text())


def main() -> int:
    """Prints how many numbers of each page are held by what, and what is wrong."""
    faults: list[str] = []
    print(f"{'page':<42}{'numbers':>9}{'checked':>9}{'settings':>10}{'as text':>9}")
    for page in pages():
        faults += page.faults
        if page.numbers:
            counts = len(page.numbers), len(page.checked), len(page.settings - page.checked)
            kept = len(page.unkept - page.checked - page.settings)
            print(f"{page.path:<42}{counts[0]:>9}{counts[1]:>9}{counts[2]:>10}{kept:>9}")
    for fault in faults:
        print(fault, file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
