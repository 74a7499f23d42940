"""The docstring convention of public names.

One sentence on one line; then, if they have something to say, in this order: Args (with every
parameter; a line may name several), Attributes, Returns, Raises, a doctest, Reference. Args and
Attributes are indented by two spaces; Returns and Raises go on in the line of their head, or below.
"""

import ast
import enum
import importlib
import inspect
import re
import textwrap

import pytest

from imr import errors

SECTIONS = ("Args", "Attributes", "Returns", "Raises", ">>>", "Reference")
PACKAGES = (
    "imr", "imr.attention", "imr.beliefs", "imr.constrained", "imr.flow", "imr.lens", "imr.metrics",
    "imr.models", "imr.nn", "imr.parallel", "imr.processes",
)  # fmt: skip

# Public names that do not follow the convention yet. The test fails for a name here that does.
TODO = {"imr.attention.products.attention_log_sums", "imr.targets.LowRankTargets"}

ERRORS = {name for name, thing in vars(errors).items() if inspect.isclass(thing)}


def public():
    """Functions and classes of imr that its packages import by name, by their full names."""
    things = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in {*dir(module)} - {*getattr(module, "SUBMODULES", ())}:
            thing = getattr(module, name)
            ours = (inspect.isclass(thing) or inspect.isfunction(thing)) and name[0] != "_"
            if ours and thing.__module__.startswith(package):
                things.setdefault(f"{thing.__module__}.{thing.__name__}", thing)
    return dict(sorted(things.items()))


def parameters(thing):
    """Names of the parameters of a function or class: those to describe, and all of them."""
    if inspect.isclass(thing):
        # The fields of these stand under Attributes, or users never construct them.
        if hasattr(thing, "_fields") or issubclass(thing, Exception | enum.Enum):
            return set(), set()
        if thing.__init__ is object.__init__:
            return set(), set()
        thing = thing.__init__  # flax hides the signature of its classes
    every = [p for p in inspect.signature(thing).parameters.values() if p.name != "self"]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name for p in every if p.kind not in variable}, {p.name for p in every}


def raises(thing):
    """Whether the body of a function, or of a class's `__init__`, raises an error of imr."""
    thing = vars(thing).get("__init__") if inspect.isclass(thing) else thing
    thing = inspect.unwrap(thing) if thing else None
    if not inspect.isfunction(thing) or not inspect.getsourcefile(thing):
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, SyntaxError):  # written by a dataclass
        return False
    calls = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc)
    names = (ast.unparse(call.func if isinstance(call, ast.Call) else call) for call in calls)
    return any(name.split(".")[-1] in ERRORS for name in names)


def sections(text):
    """The heads of sections in order, each with the lines below it."""
    actual = []
    for line in text.splitlines():
        if line.startswith(">>>"):
            if not actual or actual[-1][0] != ">>>":
                actual.append((">>>", []))
        elif match := re.match(r"(Args|Attributes|Returns|Raises|Reference):(.*)", line):
            actual.append((match[1], [match[2]] if match[2] else []))
        elif actual and line:
            actual[-1][1].append(line)
    return actual


def problems(thing):
    """What the docstring of a function or class lacks."""
    text = inspect.cleandoc(thing.__doc__ or "")
    first = text.split("\n\n")[0]
    if not first or first.startswith(f"{thing.__name__}("):
        yield "it has no docstring"
        return
    if "\n" in first or not first.endswith("."):
        yield "its first paragraph is not one line that ends in a full stop"
    heads = sections(text)
    order = [SECTIONS.index(name) for name, _ in heads]
    if order != sorted(set(order)):
        yield f"its sections are {[name for name, _ in heads]}; the order is {SECTIONS}, once each"
    bodies = dict(heads)
    for name in ("Args", "Attributes"):
        if any(not line.startswith("  ") for line in bodies.get(name, [])[:1]):
            yield f"{name} is not indented by two spaces on lines of its own"
    described = set()
    for line in bodies.get("Args", []):
        if match := re.match(r"  ([\w*]+(?:, [\w*]+)*):", line):
            described |= {name.strip("*") for name in match[1].split(", ")}
    demanded, allowed = parameters(thing)
    if missing := demanded - described:
        yield f"Args does not name {sorted(missing)}"
    if extra := described - allowed:
        yield f"Args names {sorted(extra)}, which are no parameters"
    if raises(thing) and "Raises" not in bodies:
        yield "it raises an ImrError and has no Raises"


PUBLIC = public()


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_follow_the_convention(name):
    actual = list(problems(PUBLIC[name]))
    if name in TODO:
        assert actual, "it follows the convention: take it out of TODO"
    else:
        assert not actual, "; ".join(actual)


def test_names_to_do_exist():
    assert set(PUBLIC) >= TODO


def bad(x, y):
    """What it does

    Returns: nothing.

    Args:
      x: a number.
    """
    raise errors.ImrError(f"{x} {y}")


def test_the_convention_refuses():
    actual = " ".join(problems(bad))
    for words in ("one line", "the order is", "'y'", "no Raises"):
        assert words in actual
