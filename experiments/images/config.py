"""The flags of the images experiment, and what they may be."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from imr import ImrError
from imr.nn import Block, FlowBlock, PatchBlock

# The block of each model and what it is made with; what is not said here comes from the flags.
MODELS = {
    "attention": (Block, {"mlp_width": None}),
    "mlp": (Block, {"attention": False}),
    "attention_mlp": (Block, {}),
    "latent_attention": (Block, {"mlp_width": None}),
    "flow": (FlowBlock, {}),
    "self_attention": (PatchBlock, {}),
    "self_attention_row": (PatchBlock, {"column_term": False}),
    "patch_mlp": (PatchBlock, {"attention": False}),
}


@dataclass(frozen=True)
class Config:
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
    """Which models beside multinomial regression; self_attention, self_attention_row and patch_mlp,
    with the patches of an image as tokens, take minutes more."""
    iterations: tuple[int, ...] = (3,)
    """Trained depths: how many blocks the models are trained with."""
    extra_iterations: int = 5
    """How far past the trained depth the block is iterated in the evaluation."""
    train_noise: tuple[float, ...] = (0.0, 0.5)
    """Standard deviations of the pixel noise in training, fresh at every step (pixels in [0, 1])."""
    test_noise: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0)
    """Standard deviations of the pixel noise in testing; 0 is clean."""
    epochs: int | None = None
    """Passes over the training images; by default 40, but 1,000 to 5,000 steps in all."""
    batch_size: int = 128
    """Images in a step."""
    learning_rate: float = 2e-3
    """Of Adam, at the start; it decays to 0 along a cosine."""
    l2: tuple[float, ...] = (1e-4,)
    """Penalties on the sum of squares of theta, W1, W2 and the positions of patches; the models are
    trained with each."""
    mlp_width: int = 128
    """Hidden units of the MLP; an eighth of it for the MLP of a patch."""
    flow_steps: int = 1
    """Midpoint steps of the flow model between one read-out and the next, a duration of tau."""
    grid: int = 4
    """Patches along each side of an image, the tokens of the self_attention models."""
    heads: int = 2
    """Heads of the self_attention models."""
    rank: int = 8
    """Rank of their heads; at most the pixels of a patch."""
    tau: float = 0.25
    """The step size that the blocks start from; it is learned, and positive."""
    signed_step: bool = False
    """Let the learned step change its sign."""
    prototypes: int = 8
    """Prototypes of each class in latent_attention."""
    penalties: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    """Penalties of multinomial regression; one is chosen on held-back training images."""
    held_back: float = 0.2
    """Share of the training images held back for that choice."""
    seeds: int = 5
    """Training runs of each model, vmapped: one program, one compilation."""
    seed: int = 0
    """The first of the seeds."""
    checkpoint_every: int = 10
    """Epochs between checkpoints; rounded to what one dispatch trains, about 50 steps."""
    smoke: bool = False
    """A small version of everything, for tests."""
    out: Path | None = None
    """Run folder; runs/images/<hash of the configuration> by default."""
    overwrite: bool = False
    """Replace the run in that folder."""


def check(config: Config) -> None:
    """Refuses values that make no run, before anything is read or written."""
    for name, least in (
        ("iterations", 0), ("train_noise", 0), ("test_noise", 0), ("l2", 0), ("penalties", 0),
        ("extra_iterations", 0), ("seeds", 1), ("batch_size", 1), ("mlp_width", 1),
        ("prototypes", 1), ("epochs", 1), ("checkpoint_every", 1), ("flow_steps", 1), ("grid", 1),
        ("heads", 1), ("rank", 1),
    ):  # fmt: skip
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        if not values or any(v is not None and not least <= v < math.inf for v in values):
            flag = name.replace("_", "-")
            raise ImrError(f"--{flag} takes finite values of at least {least}; found {value}.")
    for name in ("iterations", "train_noise", "test_noise", "l2", "penalties", "models"):
        value = getattr(config, name)
        if len(set(value)) < len(value):
            raise ImrError(f"--{name.replace('_', '-')} must hold each value once; found {value}.")
    for name in config.models:
        if name not in MODELS:
            raise ImrError(f"--models must be among {', '.join(MODELS)}; found {name!r}.")
    if not math.isfinite(config.tau) or not (config.signed_step or config.tau > 0):
        raise ImrError(
            f"--tau must be positive and finite (of any sign with --signed-step); found {config.tau}."
        )
    for name in ("learning_rate", "held_back"):
        if not 0 < getattr(config, name) < 1:
            flag = name.replace("_", "-")
            raise ImrError(f"--{flag} must lie between 0 and 1; found {getattr(config, name)}.")
    if 0.0 not in config.test_noise:
        raise ImrError(f"--test-noise must hold 0, clean images; found {config.test_noise}.")


def shrink(config: Config) -> Config:
    """The smoke version: every part, as small as it goes; tighter limits of the user's stay."""
    small = lambda value, limit: limit if value is None else min(value, limit)  # noqa: E731
    return replace(
        config,
        train_limit=small(config.train_limit, 400),
        test_limit=small(config.test_limit, 100),
        epochs=small(config.epochs, 60),
        checkpoint_every=1,
        iterations=tuple(sorted({min(depth, 2) for depth in config.iterations})),
        extra_iterations=1,
        mlp_width=16,
        prototypes=2,
        penalties=(1e-3, 1e-2),
        seeds=min(config.seeds, 2),
    )
