"""Numbers on pages are those of the kept summaries, and the check would see it if they were not."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def prose():
    sys.path.insert(0, str(ROOT / ".github"))
    yield importlib.import_module("prose")
    sys.path.remove(str(ROOT / ".github"))


PAGE = "Slopes are −0.99 ± 0.01 over 5 seeds (arXiv 2509.04653),\nthe loss 1e-5, and 1,437 images `x[3]`."


def said(run):
    yield "Slopes are {:.2f} ± {:.2f} over", -run("a")["slope"], 0.012
    yield "the loss {:.0e}, and {:,} images", 1e-5, 1437


def faults(prose, text=PAGE, said=said, settings=("over 5 seeds",), slope=0.99):
    return prose.check_page("p.md", text, said, settings, {}, lambda name: {"slope": slope}).faults


def test_a_page_that_says_what_its_summary_says(prose):
    assert faults(prose) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slope": 0.98}, r"p.md:1: says 'Slopes are -0.99 ± 0.01 over', the summary 'Slopes are -0.98"),
        ({"text": PAGE.replace("0.99", "0.999")}, r"says 'Slopes are -0.999 ± .*', the summary"),
        ({"text": PAGE.replace("1,437", "1437")}, "p.md:2: says 'the loss 1e-5, and 1437 images'"),
        ({"text": PAGE.replace("the loss", "a loss")}, "nowhere on the page, to be there once: 'the loss"),
        ({"text": PAGE + " " + PAGE}, "2 times on the page, to be there once: 'Slopes"),
        ({"settings": ()}, "p.md:1: nothing says where 5 is from"),
        ({"settings": ("over 5 seeds", "with 7 ways")}, "nowhere on the page: 'with 7 ways'"),
        ({"text": PAGE + "\n\nIt takes 3 s."}, "p.md:4: nothing says where 3 is from"),
    ],
)  # fmt: skip
def test_what_differs_is_told_with_its_place(prose, change, words):
    found = faults(prose, **change)
    assert any(re.search(words.replace("(", r"\("), each) for each in found), found


@pytest.mark.guides
def test_every_page_says_what_its_summaries_say(prose):
    """Where all of them are kept."""
    pages = [page for page in prose.pages() if not page.missing]
    assert [fault for page in pages for fault in page.faults] == []
    assert sum(len(page.checked) for page in pages) > 800


@pytest.mark.guides
def test_a_number_that_is_changed_is_seen(prose):
    """A digit of every twentieth number that is checked."""
    for page in prose.pages():
        for i in sorted(page.checked)[::20]:
            if page.path.endswith(".ipynb"):
                continue
            start, end = page.numbers[i]
            digit = page.text[end - 1]
            text = page.text[: end - 1] + str((int(digit) + 1) % 10) + page.text[end:]
            assert prose.again(page.path, text).faults, page.text[start - 60 : end]
