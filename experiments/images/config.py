"""The flags of the images experiment, and what they may be."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from imr.lab.bounds import above, at_least, below
from imr.lab.flags import RunFlags, flag_error
from imr.nn import Block, FlowBlock, PatchBlock

REGRESSION = "multinomial_regression"

# The block of each model and its arguments; the flags give the arguments that are not named here.
MODELS = {
    "attention": (Block, {"mlp_width": None}), "mlp": (Block, {"attention": False}),
    "attention_mlp": (Block, {}), "latent_attention": (Block, {"mlp_width": None}),
    "flow": (FlowBlock, {}), "self_attention": (PatchBlock, {}),
    "self_attention_row": (PatchBlock, {"column_term": False}),
    "patch_mlp": (PatchBlock, {"attention": False}),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config(RunFlags):
    """Flags of the images experiment."""

    dataset: str = "digits"
    """digits (bundled with scikit-learn), fashion_mnist or mnist."""
    data_dir: Path | None = None
    """Folder with your own copy of the IDX files; without it they are downloaded once."""
    train_limit: int | None = None
    """Use the first so many training images."""
    test_limit: int | None = None
    """Use the first so many test images."""
    models: tuple[str, ...] = ("attention", "mlp", "attention_mlp", "latent_attention", "flow")
    """Models beside multinomial regression; those with patches as tokens take minutes more."""
    iterations: Annotated[tuple[int, ...], at_least(0)] = (3,)
    """Trained depths: how many blocks the models are trained with."""
    extra_iterations: Annotated[int, at_least(0)] = 5
    """How far past the trained depth the block is iterated in the evaluation."""
    train_noise: Annotated[tuple[float, ...], at_least(0)] = (0.0, 0.5)
    """Standard deviations of the pixel noise in training, fresh at every step (pixels in [0, 1])."""
    test_noise: Annotated[tuple[float, ...], at_least(0)] = (0.0, 0.25, 0.5, 1.0)
    """Standard deviations of the pixel noise in testing; 0 is clean."""
    epochs: Annotated[int | None, at_least(1)] = None
    """Passes over the training images; by default 40, but 1,000 to 5,000 steps in all."""
    batch_size: Annotated[int, at_least(1)] = 128
    """Images in a step."""
    learning_rate: Annotated[float, above(0), below(1)] = 2e-3
    """Of Adam, at the start; it decays to 0 along a cosine."""
    l2: Annotated[tuple[float, ...], at_least(0)] = (1e-4,)
    """Penalties on the sums of squares of weights; the models are trained with each."""
    mlp_width: Annotated[int, at_least(1)] = 128
    """Hidden units of the MLP; an eighth of it for the MLP of a patch."""
    flow_steps: Annotated[int, at_least(1)] = 1
    """Midpoint steps of the flow model between one read-out and the next, a duration of tau."""
    grid: Annotated[int, at_least(1)] = 4
    """Patches along each side of an image, the tokens of the self_attention models."""
    heads: Annotated[int, at_least(1)] = 2
    """Heads of the self_attention models."""
    rank: Annotated[int, at_least(1)] = 8
    """Rank of their heads; at most the pixels of a patch."""
    tau: float = 0.25
    """The step size that the blocks start from; it is learned, and positive."""
    signed_step: bool = False
    """Let the learned step change its sign."""
    prototypes: Annotated[int, at_least(1)] = 8
    """Prototypes of each class in latent_attention."""
    penalties: Annotated[tuple[float, ...], at_least(0)] = (
        1e-5, 3e-5, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1,
    )  # fmt: skip
    """Penalties of multinomial regression; one is chosen on held-back training images."""
    held_back: Annotated[float, above(0), below(1)] = 0.2
    """Share of the training images held back for that choice."""
    seeds: Annotated[int, at_least(1)] = 5
    """Training runs of each model, vmapped: one program, one compilation."""
    checkpoint_every: Annotated[int | None, at_least(1)] = None
    """Epochs between checkpoints, a quarter of the training by default; rounded to what one dispatch
    trains, about 50 steps."""


def check(config: Config) -> None:
    """Refuses flags that are within their bounds and still make no run."""
    for name in ("iterations", "train_noise", "test_noise", "l2", "penalties", "models"):
        values = getattr(config, name)
        if not values and name != "models":
            raise flag_error(name, "must hold at least one value", values)
        if len(set(values)) < len(values):
            raise flag_error(name, "must hold each value once", values)
    for name in config.models:
        if name not in MODELS:
            raise flag_error("models", f"must be among {', '.join(MODELS)}", repr(name))
    if not math.isfinite(config.tau) or not (config.signed_step or config.tau > 0):
        rule = "must be positive and finite (of any sign with --signed-step)"
        raise flag_error("tau", rule, config.tau)
    if 0.0 not in config.test_noise:
        raise flag_error("test_noise", "must hold 0, clean images", config.test_noise)


def shrink(config: Config) -> Config:
    """The smoke version: every part, as small as it goes; tighter limits of the user's stay."""
    limits = {"train_limit": 400, "test_limit": 100, "epochs": 60}
    given = {name: getattr(config, name) for name in limits}
    least = {n: limits[n] if v is None else min(v, limits[n]) for n, v in given.items()}
    return replace(
        config, **least, checkpoint_every=1, extra_iterations=1, mlp_width=16, prototypes=2,
        iterations=tuple(sorted({min(depth, 2) for depth in config.iterations})),
        penalties=(1e-3, 1e-2), seeds=min(config.seeds, 2),
    )  # fmt: skip


def level_name(level: float) -> str:
    """A level of test noise in tables and figures."""
    return "clean" if level == 0 else f"noise {level:g}"
