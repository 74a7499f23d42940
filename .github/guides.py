"""Makes the notebooks of the guides from their scripts, with outputs: `scripts/docs --guides`."""

import os
import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "experiments" / "guides"


def main() -> None:
    """Runs every guide from top to bottom and keeps what it shows; what it warns of is printed."""
    os.environ["PYTHONPATH"] = str(FOLDER.parents[1])
    for script in sorted(FOLDER.glob("*.py")):
        print(script.name, flush=True)
        notebook = jupytext.read(script)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": FOLDER}}).execute()
        for cell in notebook.cells:
            for output in cell.get("outputs", ()):
                if output.get("name") == "stderr":
                    sys.stderr.write(output["text"])
            if "outputs" in cell:
                cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr"]
        jupytext.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
