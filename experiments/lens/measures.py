"""All measures of one model, each beside its nulls, as flat rows."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from experiments.lens.config import Config
from imr.lab.console import Progress
from imr.lens import (
    Model,
    Score,
    TextMeasures,
    fold_norms,
    gradient_shares,
    imr_fits,
    label_null,
    measure_text,
    mismatched,
    rotated,
    score,
    theta_spectra,
    weight_cosines,
)

TERMS = ("row", "column", "sum")
LABELS = ("next", "final")
PROBED = 8  # texts for the shares of gradient fields
LABEL_TEXTS, LABEL_DRAWS = 4, 8  # of the null of label terms
LEAST = 8  # draws that make a null


class Subject(NamedTuple):
    """A model and what it reads: sequences of tokens; none, and its weights alone are measured."""

    name: str
    model: Model
    tokens: list[np.ndarray]


class Measured(NamedTuple):
    """Rows by head and by layer, and the spectra."""

    heads: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    spectra: dict[str, np.ndarray]


def measure(config: Config, subject: Subject) -> Measured:
    """Weights, then texts."""
    heads, spectra = weights(config, subject.model)
    on_text, layers = texts(config, subject) if subject.tokens else ({}, {})
    l, h = subject.model.heads.query.shape[:2]

    def rows(columns, shape):
        return [
            {"model": subject.name, **dict(zip(("layer", "head"), map(int, index), strict=False)),
             **{name: float(column[index]) for name, column in columns.items()}}
            for index in np.ndindex(shape)
        ]  # fmt: skip

    return Measured(rows(heads | on_text, (l, h)), rows(layers, (l,)) if layers else [], spectra)


def weights(config: Config, model: Model) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weight measures by name, (l, h), and the spectra of theta."""
    raw, folded = model.heads, fold_norms(model)
    l, h = raw.query.shape[:2]
    shifts = range(1, l * h)
    some = _spread(l * h, config.draws)
    keys = list(jax.random.split(jax.random.key(config.seed), config.draws))
    columns: dict[str, Any] = {}
    for tag, heads in (("", raw), ("folded_", folded)):
        own = weight_cosines(heads)
        strange = [weight_cosines(mismatched(heads, s)) for s in shifts]
        turned = [weight_cosines(rotated(heads, key)) for key in keys]
        for field, name in (("whole", "weight_cosine"), ("within", "within_cosine")):
            value, null = getattr(own, field), [getattr(each, field) for each in strange]
            columns |= _columns(tag + name, value, null)
            null = [getattr(each, field) for each in turned]
            columns[f"{tag}{name}_z_rotated"] = _columns("", value, null)["_z"]
    fits = imr_fits(raw)
    strange = [imr_fits(mismatched(raw, s)) for s in some]
    for name in fits._fields:
        null = [getattr(each, name) for each in strange]
        columns |= _columns(f"{name}_residual", getattr(fits, name), null)
    spectra = theta_spectra(raw)
    paired = [theta_spectra(mismatched(raw, s, ("key",))).symmetric_share for s in some]
    columns |= _columns("symmetric_share", spectra.symmetric_share, paired)
    return columns, {
        "singular_values": spectra.singular_values, "eigenvalues": spectra.eigenvalues,
    }  # fmt: skip


def texts(config: Config, subject: Subject) -> tuple[dict[str, Any], dict[str, Any]]:
    """Activation measures by name, heads (l, h) and layers (l,): means over texts."""
    model, key = subject.model, jax.random.key(config.seed)
    total: Any = None
    squares: Any = None
    shares: list[Any] = []
    h = model.heads.query.shape[1]
    strange = [_strange_values(model, shift) for shift in _spread(h, 2)]
    # Texts of like length together, so that few programs are compiled.
    for tokens in _bar(sorted(subject.tokens, key=len), subject.name):
        found = measure_text(model, *_padded(model, tokens), key, config.draws)
        found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
        square = jax.tree.map(np.square, found)
        add = lambda a, b: a + b  # noqa: E731
        total = found if total is None else jax.tree.map(add, total, found)
        squares = square if squares is None else jax.tree.map(add, squares, square)
    some = subject.tokens[:: max(1, len(subject.tokens) // PROBED)][:PROBED]
    for number, tokens in enumerate(some):
        probes = jax.random.fold_in(key, number)
        found = [gradient_shares(m, *_padded(model, tokens), probes) for m in (model, *strange)]
        shares.append(np.stack(list(map(np.asarray, found))))
    # The same orders for all texts, as each draw is a mean over texts.
    labels = [
        label_null(model, *_padded(model, tokens), key, LABEL_DRAWS)
        for tokens in some[:LABEL_TEXTS]
    ]
    null = np.mean(np.stack(list(map(np.asarray, labels))), axis=0)
    return _summary(total, squares, len(subject.tokens), np.stack(shares), null)


def _summary(total: TextMeasures, squares: TextMeasures, count: int, shares: Any, label_draws: Any):
    mean = jax.tree.map(lambda x: x / count, total)

    def interval(name):
        """Half the width of the 95 % confidence interval of a mean over texts."""
        m, s = getattr(mean, name), getattr(squares, name) / count
        variance = np.maximum(s - m**2, 0) / max(count - 1, 1)
        return _quantile(count) * np.sqrt(variance)

    error = interval("cosines")
    heads: dict[str, Any] = {}
    for i, name in enumerate(TERMS):
        heads |= _columns(f"{name}_cosine", mean.cosines[i], np.moveaxis(mean.mismatched[i], -1, 0))
        heads[f"{name}_cosine_ci"] = error[i]
        heads[f"{name}_cosine_z_permuted"] = _columns("", mean.cosines[i], mean.permuted[:, i])[
            "_z"
        ]
    heads |= _columns("energy_change", mean.energy_change, mean.energy_permuted)
    heads["energy_change_ci"] = interval("energy_change")
    own = shares[:, 0].mean(axis=0)
    heads |= _columns("gradient_share", own, _by_layer(shares[:, 1:]))
    width = shares[:, 0].std(axis=0) / np.sqrt(max(len(shares) - 1, 1))
    heads["gradient_share_ci"] = _quantile(len(shares)) * width
    layers: dict[str, Any] = {}
    error = interval("layers")
    for i, name in enumerate(TERMS):
        layers |= _columns(f"{name}_cosine", mean.layers[i], mean.layers_permuted[:, i])
        layers[f"{name}_cosine_ci"] = error[i]
    error = interval("labels")
    for i, name in enumerate(LABELS):
        layers |= _columns(f"label_{name}_cosine", mean.labels[i], label_draws[:, i])
        layers[f"label_{name}_cosine_ci"] = error[i]
    for place, energy in zip(("before", "middle", "after"), mean.energies, strict=True):
        layers[f"energy_{place}"] = energy
    return heads, layers


def _quantile(count: int) -> float:
    """Of Student's t for a 95 % interval of a mean; NaN for one text."""
    return float(stats.t.ppf(0.975, count - 1)) if count > 1 else float("nan")


def _by_layer(shares):
    """Shares (texts, shifts, l, h) of strange heads: means over texts, all heads of a layer draws."""
    means = shares.mean(axis=0)
    _, l, h = means.shape
    pooled = np.moveaxis(means, 1, 2).reshape(-1, l)
    return np.repeat(pooled[:, :, None], h, axis=2)


def _columns(name: str, value: Any, null: Any) -> dict[str, Any]:
    """A measure, the mean and deviation of its null, and z; NaN where draws are too few."""
    nothing = np.full(np.shape(value), np.nan)
    found = score(value, null) if len(null) >= LEAST else Score(value, *3 * [nothing])
    return {
        name: value, f"{name}_null": found.null_mean, f"{name}_null_std": found.null_std,
        f"{name}_z": found.z,
    }  # fmt: skip


def _strange_values(model: Model, shift: int) -> Model:
    """The model whose heads write what another head of the layer would."""
    roll = lambda w: np.roll(np.asarray(w), shift, axis=1)  # noqa: E731
    parts = ("value", "value_bias", "output")
    heads = model.heads._replace(**{p: roll(getattr(model.heads, p)) for p in parts})
    return replace(model, heads=heads)


def _spread(count: int, draws: int) -> list[int]:
    """At most so many shifts, evenly over all there are."""
    return sorted(
        set(np.linspace(1, count - 1, min(draws, count - 1)).round().astype(int).tolist())
    )


def _padded(model: Model, tokens: np.ndarray) -> tuple[np.ndarray, np.int32]:
    """Filled up to one of few lengths, two for every doubling, for each is a program; and the length."""
    size = 8
    while size < len(tokens):
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    filled = np.zeros(min(size, len(model.positions)), np.int32)
    filled[: len(tokens)] = tokens
    return filled, np.int32(len(tokens))


def _bar(tokens: list[np.ndarray], name: str):
    with Progress(len(tokens), f"{name}: texts") as progress:
        for number, each in enumerate(tokens):
            yield each
            progress.update(number + 1)
