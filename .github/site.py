"""Hooks of the site: which pages it has, and formulas as MathML, which browsers draw by themselves.

Pages are the READMEs of the repository at their own paths, so that links between them hold on a code
host and here; the guides; and a page of public names for each package of imr.
"""

import base64
import importlib
import inspect
import json
import re
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

import imr

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "imr", "imr.models", "imr.attention", "imr.flow", "imr.context", "imr.splitting", "imr.targets",
    "imr.regression", "imr.processes", "imr.beliefs", "imr.constrained", "imr.nn", "imr.metrics",
    "imr.lens", "imr.parallel",
)  # fmt: skip
_GUIDES = "experiments/guides/"


def on_config(config: Any) -> Any:
    """Sets the order of the pages."""
    readmes = [p for p in _tracked() if p.endswith("README.md")]
    names = {
        part: sorted(p for p in readmes if p.startswith(f"{part}/"))
        for part in ("imr", "experiments")
    }
    experiments = [p for p in names["experiments"] if not p.startswith(_GUIDES)]
    config["nav"] = [
        {"imr": "README.md"},
        {"Guides": [f"{_GUIDES}README.md", *(p.replace(".ipynb", ".md") for p in _notebooks())]},
        {"Library": names["imr"]},
        {"Names": [{package: f"api/{package}.md"} for package in filter(_names, PACKAGES)]},
        {"Experiments": experiments},
        {"Running": "scripts/README.md"},
        {"Project": ["project/CONTRIBUTING.md", "project/CHANGELOG.md"]},
    ]
    config["extra"]["version"] = imr.__version__
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds what lies elsewhere in the repository, and the pages of names."""
    for path in _tracked():
        if path.endswith((".md", ".png")) and not path.startswith(".github/docs/"):
            to = path.replace(".github/", "project/")
            files.append(File.generated(config, to, abs_src_path=str(ROOT / path)))
    for path in _notebooks():
        page, pictures = _guide(path)
        for to, content in {path.replace(".ipynb", ".md"): page, **pictures}.items():
            files.append(File.generated(config, to, content=content))
    for package in filter(_names, PACKAGES):
        files.append(File.generated(config, f"api/{package}.md", content=_page(package)))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Formulas, which arithmatex has marked, as MathML."""
    html = re.sub(
        r'<(span|div) class="arithmatex">(.*?)</\1>',
        lambda found: _formula(found[2]),
        html,
        flags=re.S,
    )
    return html


def _formula(marked: str) -> str:
    text = unescape(marked).strip()
    display = "block" if text.startswith("\\[") else "inline"
    return convert(text[2:-2], display=display)


def _tracked() -> list[str]:
    """Files of the repository: those that git would keep, or all where there is no git."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    try:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        folders = [ROOT / name for name in ("imr", "experiments", "scripts", ".github")]
        found = [ROOT / "README.md", *(path for folder in folders for path in folder.rglob("*.*"))]
        return [str(path.relative_to(ROOT)) for path in found]


def _notebooks() -> list[str]:
    return sorted(p for p in _tracked() if p.startswith(_GUIDES) and p.endswith(".ipynb"))


def _guide(path: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its figures by their paths."""
    parts, pictures = [], {}
    for number, cell in enumerate(json.loads((ROOT / path).read_text())["cells"]):
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        said, shown = "", []
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{Path(path).stem}_{number}.png"
                pictures[_GUIDES + name] = base64.b64decode(data["image/png"])
                shown.append(f"![Output of the code above]({name})")
            elif output.get("name") == "stdout" or "text/plain" in data:
                said += "".join(output.get("text", data.get("text/plain", "")))
        if said:
            parts.append(f"```text\n{said.rstrip()}\n```")
        parts += shown
    return "\n\n".join(parts) + "\n", pictures


def _names(package: str) -> list[str]:
    """The public names of a package; those that stand in imr itself are on its page."""
    return sorted(
        (
            name
            for name, thing in vars(importlib.import_module(package)).items()
            if name[0] != "_"
            and (inspect.isclass(thing) or inspect.isfunction(thing))
            and thing.__module__.startswith(package)
            and (package == "imr" or getattr(imr, name, None) is not thing)
        ),
        key=str.lower,
    )


def _page(package: str) -> str:
    """The public names of a package, each with its docstring."""
    docstring = inspect.getdoc(importlib.import_module(package)) or ""
    body = "\n\n".join(f"::: {package}.{name}" for name in _names(package))
    return f"# {package}\n\n{docstring}\n\n{body}\n"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to what has another path here; the first page has no others beside it."""
    if page.file.src_uri == "README.md":
        page.meta["hide"] = ["navigation"]
    markdown = markdown.replace("](.github/", "](project/")  # as on_files has it
    markdown = markdown.replace("```python\n>>>", "```pycon\n>>>")
    return re.sub(r"(\]\([^)\s]*)\.ipynb\)", r"\1.md)", markdown)


class _Links(HTMLParser):
    """What a page points to, and the places on it that can be pointed to."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes one tag."""
        known = dict(attrs)
        self.targets += filter(None, (known.get("href"), known.get("src")))
        self.places |= set(filter(None, (known.get("id"), known.get("name"))))


def on_post_build(config: Any) -> None:
    """Refuses a page that points to nothing, or on which a formula is left as it was written."""
    site = Path(config["site_dir"])
    pages = {path: _Links() for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    faults = []
    for path, links in pages.items():
        text = path.read_text()
        links.feed(text)
        if "arithmatex" in text or "<merror" in text:
            faults.append(f"{path.relative_to(site)}: a formula that is not drawn")
    for path, links in pages.items():
        for target in set(links.targets):
            address, _, place = target.partition("#")
            if re.match(r"[a-z]+:|//|javascript", target):
                continue
            to = (path.parent / unquote(address)).resolve() if address else path
            to = to / "index.html" if to.is_dir() else to
            if not to.is_file() or (
                place and to in pages and unquote(place) not in pages[to].places
            ):
                faults.append(f"{path.relative_to(site)}: nothing at {target}")
    if faults:
        raise PluginError("\n".join(sorted(faults)))
