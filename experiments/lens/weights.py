"""The measures of the weights of one model, each beside its nulls, and one line for the whole model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.lens.config import Config
from imr import lens
from imr.lab.console import Progress
from imr.lens.model import layers_of

LEAST_DRAWS = 8  # of a null
FEWEST = 6  # other heads, for a count of heads beyond them
MOST_PAIRS = 1024  # heads that meet every other one in a null; of more, each meets 64
MOST_DRAWN = 128  # heads that each have a null of their own for what takes factorisations
BEYOND = 3.0  # standard deviations of a null

Columns = dict[str, Any]  # arrays (l, h) or (l,) by the name of their column


class Weights(NamedTuple):
    """The circuits of all heads, as they are and with norms folded in, and the layers if they are known.

    `first` says whether norms come before the heads: the stream that heads share is then the one in
    front of the norm, and the circuits between its features are the folded ones.
    """

    raw: lens.HeadWeights
    folded: lens.HeadWeights
    groups: int
    first: bool
    layers: list[lens.Heads]

    @property
    def circuits(self) -> lens.HeadWeights:
        """In the coordinates of the stream."""
        return self.folded if self.first else self.raw

    def rotary(self) -> list[lens.RotarySpectra]:
        """Spectra over distance of each layer with rotary positions, of the same circuits."""
        turning = (heads for heads in self.layers if heads.frequencies is not None)
        return [lens.rotary_spectra(lens.fold_heads(h) if self.first else h) for h in turning]


class OfWeights(NamedTuple):
    """Columns of shape (l, h), one line for the model, and the spectra of theta."""

    columns: Columns
    headline: dict[str, Any]
    spectra: lens.Spectra


def weights_of(model: lens.TransformerWeights | list[lens.Heads]) -> Weights:
    """The circuits of a model, or of the layers of its heads."""
    if isinstance(model, lens.TransformerWeights):
        attention, numbers = model.attention, range(len(model.attention.query))
        layers = [jax.tree.map(lambda x, i=i: np.asarray(x[i]), layers_of(model)) for i in numbers]
        raw, folded = model.heads, lens.fold_norms(model)
    else:
        attention, layers = model[0], model
        raw, folded = (lens.head_weights(each) for each in (layers, map(lens.fold_heads, layers)))
    groups = raw.query.shape[1] // attention.group_size
    return Weights(raw, folded, groups, attention.norm_first, layers)


def measure_weights(config: Config, name: str, weights: Weights) -> OfWeights:
    """All measures of weights of one model."""
    raw, groups, key = weights.raw, weights.groups, jax.random.key(config.seed)
    l, h = raw.query.shape[:2]
    size, count = h // groups, l * h
    drawn = spread(count, config.draws if count <= MOST_DRAWN else 2, size)
    columns: Columns = {}
    with Progress(5 + 2 * len(drawn), f"{name}: weights") as progress:
        done = 0

        def step(value: Any) -> Any:
            nonlocal done
            done += 1
            progress.update(done)
            return value

        pairs = {}
        for heads, tag in ((raw, ""), (weights.folded, "folded_")):
            found, pairs[tag] = _cosines(config, heads, groups, tag)
            columns |= step(found)
        own = weights.circuits
        fits = [step(lens.imr_fits(lens.mismatched(own, shift))) for shift in drawn]
        for field, value in step(lens.imr_fits(own))._asdict().items():
            null = [getattr(draw, field) for draw in fits]
            columns |= beside(f"{field}_residual", value, _own_or_pooled(null, count))
        spectra = step(lens.theta_spectra(raw))
        shares = [_symmetric_share(lens.mismatched(raw, shift, ("key",)), step) for shift in drawn]
        null = _own_or_pooled(shares, count)
        columns |= beside("symmetric_share", spectra.symmetric_share, null)
        tag = "folded_" if weights.first else ""
        line = step(_headline(weights, columns, tag, pairs[tag], key))
    return OfWeights(columns, line, spectra)


def _symmetric_share(heads: lens.HeadWeights, step: Callable[[Any], Any]) -> Any:
    return step(lens.theta_spectra(heads).symmetric_share)


def _cosines(
    config: Config, heads: lens.HeadWeights, groups: int, tag: str
) -> tuple[Columns, np.ndarray | None]:
    """Cosines beside theta of other key groups and random rotations of theta, and those of all pairs."""
    l, h = heads.query.shape[:2]
    count, size, key = l * h, h // groups, jax.random.key(config.seed)
    own, whole = lens.weight_cosines(heads), None
    if count <= MOST_PAIRS:
        pairs = lens.pair_cosines(heads, groups=groups)
        nulls = {name: _others(matrix, l, size) for name, matrix in pairs._asdict().items()}
        whole = pairs.whole
    else:
        nulls = {"whole": lens.shifted_cosines(heads, key, groups=groups)}
    # For large models theta of other heads is null enough.
    keys = jax.random.split(key, config.draws if count <= MOST_DRAWN else 0)
    turned = [lens.weight_cosines(lens.rotated(heads, each)) for each in keys]
    columns: Columns = {}
    for field, column in (("whole", f"{tag}weight_cosine"), ("within", f"{tag}within_cosine")):
        value = getattr(own, field)
        columns |= beside(column, value, nulls.get(field, []))
        columns[f"{column}_z_rotated"] = score(value, [getattr(x, field) for x in turned]).z
    return columns, whole


def _others(pairs: np.ndarray, l: int, size: int) -> np.ndarray:
    """What each head has with those of other key groups, (others, l, h)."""
    group = np.arange(len(pairs)) // size
    return pairs[group[:, None] != group].reshape(len(pairs), -1).T.reshape(-1, l, len(pairs) // l)


def _headline(
    weights: Weights, columns: Columns, tag: str, pairs: np.ndarray | None, key: jax.Array
) -> dict[str, Any]:
    """One row of a model: how its circuits lean, and every control of that."""
    heads, groups = weights.circuits, weights.groups
    l, h = heads.query.shape[:2]
    size = h // groups
    own, z = columns[f"{tag}weight_cosine"], columns[f"{tag}weight_cosine_z"]
    if np.isnan(z).all() and pairs is not None and l * h - size >= FEWEST:
        # Too few for the z of a head, but not for a count.
        z = lens.score(own, _others(pairs, l, size)).z
    elif np.isnan(z).all():
        z = columns[f"{tag}weight_cosine_z_rotated"]
    gauge, parts = lens.gauge_scores(heads), lens.part_cosines(heads)
    family = lens.permuted_layers(heads, key)
    row: dict[str, Any] = {
        "heads": l * h,
        "norms_folded": weights.first,
        "negative": int((own < 0).sum()),
        "mean": own.mean(),
        **_sides("beyond", z),
        **_sides("gauge", gauge.z),
        "opposition": gauge.opposition.mean(),
        "untransposed": parts.untransposed.mean(),
        "symmetric_negative": int((parts.symmetric < 0).sum()),
        "antisymmetric_negative": int((parts.antisymmetric < 0).sum()),
        "descent_left": columns["descent_residual"].mean(),
        "climb_left": columns["climb_residual"].mean(),
        "null_left": columns["descent_residual_null"].mean(),
        "permuted_mean": family.mean_null.mean(),
        "permuted_std": family.mean_null.std(),
        "permuted_low": np.quantile(family.mean_null, 0.025),
        "permuted_high": np.quantile(family.mean_null, 0.975),
        "mean_p": family.mean_p,
        "negative_p": family.negative_p,
    }
    if h - size > 1:
        row |= _sides("layer", lens.layer_scores(heads, groups=groups).z)
    if heads.query.shape[2] > 32:
        less = lens.weight_cosines(lens.without_shared(heads, 32)).whole
        row["unshared_negative"] = int((less < 0).sum())
    if size > 1 and pairs is not None:
        # Another query head of the same key group, the next one round.
        number = np.arange(l * h)
        other = number - number % size + (number + 1) % size
        met = pairs[number, other]
        row |= {"group_negative": int((met < 0).sum()), "group_mean": met.mean()}
    return row


def _sides(name: str, z: Any) -> dict[str, int]:
    """How many heads lie beyond a null on the side of descent, and on that of climbing."""
    return {f"{name}_descent": int((z < -BEYOND).sum()), f"{name}_climb": int((z > BEYOND).sum())}


def _own_or_pooled(null: list[Any], count: int) -> Any:
    """The draws of a null; few of them for many heads, so that those of a layer share theirs."""
    if count <= MOST_DRAWN:
        return null
    draws, (l, h) = len(null), null[0].shape
    pooled = np.moveaxis(np.stack(null), 1, 2).reshape(draws * h, l, 1)
    return np.repeat(pooled, h, axis=2)


def score(value: Any, null: Any) -> lens.Score:
    """A measure beside its null; NaN if there are too few draws."""
    if len(null) >= LEAST_DRAWS:
        return lens.score(value, null)
    nothing = np.full(np.shape(value), np.nan)
    return lens.Score(value, nothing, nothing, nothing)


def beside(name: str, value: Any, null: Any) -> Columns:
    """Columns of a measure: itself, mean and deviation of its null, and z."""
    parts = zip(("", "_null", "_null_std", "_z"), score(value, null), strict=True)
    return {name + part: array for part, array in parts}


def spread(count: int, draws: int, size: int = 1) -> list[int]:
    """At most so many shifts, evenly over all that leave groups of that size."""
    every = count - 2 * size + 1
    shifts = np.linspace(size, count - size, max(0, min(draws, every))).round().astype(int)
    return sorted(set(shifts.tolist()))
