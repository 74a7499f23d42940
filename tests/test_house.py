"""The house rules: what may import what, what lies where, and what must be documented."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import imr

ROOT = Path(__file__).resolve().parents[1]
TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "imr", "experiments", "tests", "scripts"}

# From the ground up. A module may import those of lower lines and, in a folder, of the same folder.
FLOORS = (
    ("errors", "_lazy", "_compiler"),
    ("_typing", "_checks", "_files", "_module"),
    ("_numerics", "_sequences", "_target_rows", "_shapes", "_parameters", "parallel"),
    ("_targets",),
    ("targets", "processes", "attention"),
    ("models",),
    ("losses",),
    ("regression", "beliefs", "constrained", "context"),
    ("flow",),
    ("splitting",),
    ("nn",),
    ("lab", "metrics"),
    ("lens",),
    ("__main__",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}

ONLY_IN = {
    "diffrax": {"flow"},
    "orbax": {"lab"},
    "experiments": set(),
}
# Heavy or optional: imported, if at all, by the functions that need them.
NEVER_AT_THE_TOP = {"torch", "matplotlib", "sklearn", "pooch", "tyro", "tqdm"}

SOURCES = sorted((ROOT / "imr").rglob("*.py"))
MODULES = [path for path in SOURCES if path != ROOT / "imr" / "__init__.py"]


def name_of(path):
    return str(path.relative_to(ROOT))


def unit_of(path):
    """The module of a floor that a source file belongs to: itself, or its folder."""
    return path.relative_to(ROOT / "imr").parts[0].removesuffix(".py")


def imported(path, at_top_only=False):
    """Every module that a source file names in an import, wherever it stands, in full."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(ROOT).parts[:-1]
    stack = list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*base, *([node.module] if node.module else [])])
            # `from imr import losses` means the module losses.
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif not (at_top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            stack.extend(ast.iter_child_nodes(node))


def test_the_import_reader_sees_every_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "imr" / "nn" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import imr.b\nfrom imr import c\nfrom ..d import e\nfrom . import f\n"
        "if TYPE_CHECKING:\n    import g\ndef h():\n    import i.j\n"
    )
    top = {"imr.b", "imr.c", "imr.d.e", "imr.nn.f", "g"}
    assert set(imported(path, at_top_only=True)) == top
    assert set(imported(path)) == {*top, "i.j"}
    assert unit_of(path) == "nn"


def test_every_module_has_a_floor():
    missing = {unit_of(path) for path in MODULES} - set(FLOOR)
    assert not missing, "give the new module a line in FLOORS"


def test_imports_point_downwards():
    upwards = []
    for path in MODULES:
        here = unit_of(path)
        for name in imported(path):
            if name.split(".")[0] != "imr":
                continue
            there = name.split(".")[1] if "." in name else ""
            assert there in FLOOR, f"{name}: import the module that defines it, not the package"
            if there != here and FLOOR[there] >= FLOOR[here]:
                upwards.append(f"{name_of(path)} imports {name}")
    assert not upwards


def test_some_packages_are_imported_in_one_place():
    elsewhere = []
    for path in SOURCES:
        for name in imported(path):
            allowed = ONLY_IN.get(name.split(".")[0])
            if allowed is not None and unit_of(path) not in allowed:
                elsewhere.append(f"{name_of(path)} imports {name}")
        at_top = {name.split(".")[0] for name in imported(path, at_top_only=True)}
        elsewhere += [f"{name_of(path)} imports {n} at the top" for n in at_top & NEVER_AT_THE_TOP]
    assert not elsewhere


def test_nothing_imports_experiments():
    """Not even one experiment another: each can be read, and thrown away, alone."""
    for path in [*SOURCES, *sorted((ROOT / "experiments").rglob("*.py"))]:
        own = path.relative_to(ROOT).parts[1].removesuffix(".py")
        foreign = {name for name in imported(path) if name.split(".")[0] == "experiments"}
        assert all(name.startswith(f"experiments.{own}.") for name in foreign), (path, foreign)


def test_import_is_light_and_submodules_load_on_first_use():
    """What few need is imported by the functions that need it."""
    heavy = ["orbax", "matplotlib", "sklearn", "pooch", "tyro", "tqdm", "torch", "experiments"]
    heavy += ["flax", "optax"]
    names = [*imr.SUBMODULES, *(f"lab.{name}" for name in imr.lab.SUBMODULES)]
    code = f"""
import operator, sys, imr
print([name for name in {heavy} if name in sys.modules])
for name in {names}:
    operator.attrgetter(name)(imr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def public_names():
    if "__all__" in vars(imr):
        return sorted(vars(imr)["__all__"])
    # The hook that checks shapes leaves a module of its own in every module of ours.
    foreign = {name for name, it in vars(imr).items() if inspect.ismodule(it)} - set(FLOOR)
    return sorted(name for name in vars(imr) if name[0] != "_" and name not in foreign)


@pytest.mark.parametrize("name", public_names())
def test_public_names_are_documented(name):
    thing = getattr(imr, name)
    if not (inspect.ismodule(thing) or callable(thing)):
        pytest.skip("a constant or an alias has no docstring of its own")
    text = thing.__doc__ or ""
    assert text.strip()
    # What dataclasses and named tuples write of themselves says nothing.
    assert not text.startswith(f"{name}(")


def test_every_module_and_public_function_has_a_docstring():
    kinds, missing = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        public = [node for node in tree.body if isinstance(node, kinds) and node.name[0] != "_"]
        missing += [f"{name_of(path)}: {n.name}" for n in public if not ast.get_docstring(n)]
        missing += [] if ast.get_docstring(tree) else [name_of(path)]
    assert not missing


def test_modules_are_short():
    long = {name_of(p): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 350}
    assert not long


@pytest.fixture(scope="module")
def tracked():
    """The files that git tracks, relative to the root."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if done.returncode or "pyproject.toml" not in done.stdout.split("\0"):
        pytest.skip("not a git checkout")
    return [Path(name) for name in done.stdout.split("\0") if name]


def test_top_level(tracked):
    assert {path.parts[0] for path in tracked if path.parts[0][0] != "."} == TOP_LEVEL


def test_readme_lists_the_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (line,) = re.findall(r"extras: ([^)]*)\)", (ROOT / "README.md").read_text())
    assert set(line.split(", ")) == set(project["optional-dependencies"])


def test_no_file_names_a_place_on_a_machine(tracked):
    # A word or a dot before the slash makes it a part of a relative path or of an address.
    place = re.compile(r"(?<![\w.~*-])/(?:work|root|home)/")
    found = []
    for path in tracked:
        if (ROOT / path).is_file():
            text = (ROOT / path).read_bytes().decode("utf-8", errors="ignore")
            found += [f"{path}: {line}" for line in text.splitlines() if place.search(line)]
    assert not found


def test_pictures_are_small():
    """Those of pages and guides: each takes less than 150 KB."""
    sizes = {
        name_of(path): path.stat().st_size for path in sorted((ROOT / "experiments").rglob("*.png"))
    }
    for path in sorted((ROOT / "experiments" / "guides").glob("*.ipynb")):
        for number, coded in enumerate(re.findall(r'"image/png": "([^"]*)"', path.read_text())):
            sizes[f"{name_of(path)}, {number}"] = 3 * len(coded) // 4
    assert len(sizes) > 20
    assert not {name: size for name, size in sizes.items() if size >= 150_000}
