"""The guides run from top to bottom, and each notebook is its script with outputs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "experiments" / "guides"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def cells_of(script):
    """Sources of the cells of a script in the percent format, without the header."""
    text = script.read_text(encoding="utf-8").partition("# ---\n\n")[2]
    for kind, body in re.findall(r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", text, re.M | re.S):
        lines = body.strip("\n").splitlines()
        yield "\n".join(re.sub(r"^# ?", "", line) for line in lines) if kind else "\n".join(lines)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script_with_small_outputs(script):
    path = script.with_suffix(".ipynb")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert ["".join(cell["source"]) for cell in notebook["cells"]] == list(cells_of(script)), (
        f"run scripts/docs --guides: {script.name} has changed"
    )
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", ())]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 1
    assert path.stat().st_size < 150_000


def test_there_are_six_and_the_readme_lists_them():
    assert len(SCRIPTS) == 6
    listed = re.findall(r"\((\w+)\.ipynb\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert listed == [path.stem for path in SCRIPTS]


@pytest.mark.guides
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_guide_runs_from_top_to_bottom(script, tmp_path):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    environment = {**clean, "MPLBACKEND": "agg", "PYTHONPATH": str(FOLDER.parents[1])}
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()
    assert not list(tmp_path.iterdir())  # a guide leaves nothing behind
