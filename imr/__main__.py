"""The command `imr NAME`, or `python -m imr NAME`: experiments, from a checkout or from the wheel."""

import ast
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PLACES = (_HERE / "_wheel", _HERE.parent)  # where the folder `experiments` lies in each


def _questions(folder: Path) -> dict[str, str]:
    """Experiments and the first line of their description, without importing them."""
    found = {}
    for path in sorted(folder.glob("*/__main__.py")):
        text = ast.get_docstring(ast.parse((path.parent / "__init__.py").read_text())) or ""
        found[path.parent.name] = text.partition("\n")[0]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Becomes `python -m experiments.NAME` for the experiment that the first argument names.

    Args:
      argv: the arguments, those of the process by default.
    Returns: 0 after `--help`, 2 if there is no such experiment; an experiment takes the process over.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    place = next((place for place in _PLACES if (place / "experiments").is_dir()), None)
    if place is None:
        sys.stderr.write("error: this copy of imr has no experiments; install its wheel.\n")
        return 2
    known = _questions(place / "experiments")
    width = max(map(len, known))
    listed = "".join(f"  {name:<{width}}  {text}\n" for name, text in known.items())
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(f"usage: imr EXPERIMENT [flags], imr EXPERIMENT --help\n\n{listed}")
        return 0 if arguments else 2
    name, *flags = arguments
    if name not in known:
        sys.stderr.write(f"error: there is no experiment {name!r}. There are:\n{listed}")
        return 2
    paths = [str(place), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-P", "-m", f"experiments.{name}", *flags]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    sys.exit(main())
