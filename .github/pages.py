"""What pages that belong to no experiment say, as `prose.py` of an experiment has it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import readme

from imr.beliefs import filter as belief_filter
from imr.constrained import additive_filter
from imr.lens import sample_texts
from imr.parallel import cost


@dataclass(frozen=True)
class Claims:
    """The texts, settings and unkept figures of one page."""

    SETTINGS: tuple[str, ...] = ()
    UNKEPT: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    said: Callable[[Callable[[str], Any]], Iterator[tuple[Any, ...]]] | None = None


# Some numbers are no result of a run, but what the code computes or holds.


def _beliefs(run: Callable[[str], Any]) -> Iterator[tuple[Any, ...]]:
    few = belief_filter.FEW_STATES, belief_filter._FEW_TOKENS
    yield "Above {} states no matrix is gathered for each sequence: with up to {} tokens", *few


def _constrained(run: Callable[[str], Any]) -> Iterator[tuple[Any, ...]]:
    yield "{:.3f} instead of 0.55 for the process above", additive_filter(0.55, 0.4).pole


def _lens(run: Callable[[str], Any]) -> Iterator[tuple[Any, ...]]:
    yield "`sample_texts` ({} sentences)", len(sample_texts())


def _parallel(run: Callable[[str], Any]) -> Iterator[tuple[Any, ...]]:
    core = cost.Machine("one core", 79e9, 2.5e9, 31e9, 16e9, 1e9)
    here = cost.seconds(cost.quadratic_field_cost(8192, 16, 16), core)
    yield "that is {:.2f} s for n = 8192 and r = 16", here
    field = cost.quadratic_field_cost(524_288, 16, 16, block=4096)
    step = cost.step_cost(field, 524_288 * 16)
    seconds = [cost.seconds(each, cost.H100) for each in (field, step)]
    yield "takes {:.2f} s, and a step of Tsit5 {:.0f} s, at peak rates", *seconds


_ONE_CORE = "timed by scripts/bench on one quiet core of an earlier machine"
_FAMILIES = "Qwen 2 and 3, Gemma 1 to 3"

PAGES: dict[str, object] = {
    "README.md": readme,
    "experiments/guides/4_predicting_a_transformer.ipynb": Claims(SETTINGS=("3,000 steps are few",)),
    "experiments/guides/6_in_context.ipynb": Claims(SETTINGS=("−1 stands in their place",)),
    ".github/CHANGELOG.md": Claims(
        SETTINGS=(
            "0.2.0", "0.1.0", "0.10.2", "28 model types", "steps of size 0",
            "probability 0", "GPT-2",
        ),
    ),
    ".github/CONTRIBUTING.md": Claims(
        SETTINGS=("at most 350 lines", "smaller than 150 KB"),  # held by tests/test_house.py
        UNKEPT={
            "tests say themselves how long they took": (
                "under 2 minutes |", "10 minutes |", "25 minutes |", "3 minutes |",
            ),
        },
    ),
    "experiments/guides/README.md": Claims(
        SETTINGS=tuple(f"| [{number} " for number in range(1, 7))
    ),
    "scripts/README.md": Claims(
        SETTINGS=("Exit code 75",),
        UNKEPT={
            "seconds of the tests on a SLURM, told by pytest --durations": (
                "2.6 minutes", "time limit | 40", "cannot be reached | 33", "partition | 14",
                "two seeds | 9", "regression | 12, 11, 12", "run folder | 3", "unbroken one | 2",
                "refuses | 0.3",
            ),
        },
    ),
    "imr/beliefs/README.md": Claims(
        said=_beliefs,
        SETTINGS=(
            "token d + 1", "position −1", "states are −1", "64 sequences of 50 tokens with 1,000 states",
            "10,000 sequences of 100 tokens", "one sequence of 100,000", "so that 100,000 tokens",
            "medians of 7",
        ),
        UNKEPT={
            "what compiled programs reserve, bounded by tests/test_beliefs.py": ("13 MB", "269 MB"),
            _ONE_CORE: ("0.066 s", "0.005 s", "6 to 8 times", "2 to 3 times less"),
        },
    ),
    "imr/constrained/README.md": Claims(
        said=_constrained,
        SETTINGS=("v A = 0", "0.55", "3⁹ words"),
        UNKEPT={_ONE_CORE: ("0.009 s, 380 times less",)},
    ),
    "imr/context/README.md": Claims(
        # What tests/test_context.py holds is a limit.
        SETTINGS=("− xⱼ\\|²/2", "(x, x, y, 0)", "optimum to 1e-6", "1,000 contexts"),
    ),
    "imr/flow/README.md": Claims(
        SETTINGS=("65,530 mappings",),
        UNKEPT={
            "printed by tests/test_inputs.py, which bounds it": (
                "18 MB and 140 mappings", "28 MB and 310", "some 200 shapes",
            ),
        },
    ),
    "imr/lens/README.md": Claims(
        said=_lens,
        SETTINGS=("GPT-2", _FAMILIES, "OLMo 2", "shape (1, n)", "64 shifts by default"),
    ),
    "imr/parallel/README.md": Claims(
        said=_parallel,
        SETTINGS=(
            "8 n r bytes", "12 n r", "exit code 0", "SIGINT with 130", "exit code 75",
            "within 2 to 10 %",  # limits of tests/test_cost.py
            "6 n² r FLOPs", "8 n² r and 2 n²", "n = 8192 and r = 16", "n = 524,288 and r = 16",
            "128 x 128", "1024 numbers",
        ),
        UNKEPT={
            "printed by scripts/bench --parts devices, as largest differences over eight devices": (
                "1e-10 in float64", "5e-6 in float32",
            ),
            _ONE_CORE: ("79 GFLOP/s, 2.5 Gexp/s, 31 GB/s", "0.19 s are measured"),
        },
    ),
}  # fmt: skip
