"""All measures of one model, each beside its nulls, as flat rows."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from experiments.lens.config import Config
from experiments.lens.edits import edit_rows
from experiments.lens.subjects import InContext, Subject, padded
from experiments.lens.weights import Columns, beside, measure_weights, score, spread, weights_of
from imr import lens
from imr.lab.console import Progress
from imr.lab.folder import RunFolder

PROBED_TEXTS = 8  # of the shares of gradient fields
LABEL_TEXTS, LABEL_DRAWS = 4, 8  # of the null of label terms


class Measured(NamedTuple):
    """What was measured of one model.

    Attributes:
      subject: the model.
      shape: (l, h) of its heads.
      headline: one row, of the whole model.
      heads, layers: a row for each head, and for each layer if it read texts.
      spectra: of theta.
      rotary: of each layer with rotary positions.
    """

    subject: Subject
    shape: tuple[int, ...]
    headline: dict[str, Any]
    heads: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    spectra: lens.Spectra
    rotary: list[lens.RotarySpectra]

    @property
    def tag(self) -> str:
        """What columns of cosines in the coordinates of the stream begin with."""
        return "folded_" if self.headline["norms_folded"] else ""


class Results(NamedTuple):
    """Of models with heads, rows of nets that learn in context beside their construction, and of edits."""

    models: list[Measured]
    construction: list[dict[str, Any]]
    edits: list[dict[str, Any]]


def measure(config: Config, run: RunFolder, subjects: list[Subject | InContext]) -> Results:
    """Measures the weights of every model, then its activations on texts."""
    del run
    results, construction, edits = [], [], []
    for subject in subjects:
        if isinstance(subject, InContext):
            key = jax.random.key(config.seed)
            rows = lens.construction_rows(subject.nets, key, config.draws)
            construction += [{"nets": subject.name, **row} for row in rows]
            continue
        if config.edits:
            edits += edit_rows(config, subject)
            continue
        name, model, tokens, _ = subject
        weights = weights_of(model)
        shape, layers = weights.raw.query.shape[:2], []
        of_weights = measure_weights(config, name, weights)
        columns = of_weights.columns
        if tokens:
            on_text, by_layer = _text_columns(config, subject)
            columns, layers = columns | on_text, _rows(name, by_layer, shape[:1])
        heads, rotary = _rows(name, columns, shape), weights.rotary()
        spectra, line = of_weights.spectra, {"model": name, **of_weights.headline}
        results.append(Measured(subject, shape, line, heads, layers, spectra, rotary))
    return Results(results, construction, edits)


def _rows(model: str, columns: Columns, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        {"model": model, **dict(zip(("layer", "head"), map(int, index), strict=False)),
         **{name: float(column[index]) for name, column in columns.items()}}
        for index in np.ndindex(shape)
    ]  # fmt: skip


def _text_columns(config: Config, subject: Subject) -> tuple[Columns, Columns]:
    """The activation measures as means over texts, columns of shape (l, h) and (l,)."""
    model, key = subject.model, jax.random.key(config.seed)
    assert isinstance(model, lens.TransformerWeights)  # by `subjects`
    mean, interval = _over_texts(config, subject.name, model, subject.tokens, key)
    probed = subject.tokens[:: max(1, len(subject.tokens) // PROBED_TEXTS)][:PROBED_TEXTS]
    heads = _all_beside("{}_cosine", mean.cosines, mean.mismatched, interval.cosines)
    for term, value in mean.cosines._asdict().items():
        heads[f"{term}_cosine_z_permuted"] = score(value, getattr(mean.permuted, term)).z
    heads |= beside("energy_change", mean.energy_change, mean.energy_permuted)
    heads["energy_change_ci"] = interval.energy_change
    heads |= _gradient_columns(model, probed, key)
    # The same orders for all texts, as each draw is a mean over texts.
    each = [padded(model, tokens) for tokens in probed[:LABEL_TEXTS]]
    draws = [lens.label_null(model, *text, key, LABEL_DRAWS) for text in each]
    null = jax.tree.map(lambda *x: np.mean(x, axis=0), *draws)
    layers = _all_beside("{}_cosine", mean.layers, mean.layers_permuted, interval.layers)
    layers |= _all_beside("label_{}_cosine", mean.labels, null, interval.labels)
    return heads, layers | {f"energy_{name}": x for name, x in mean.energies._asdict().items()}


def _over_texts(
    config: Config, name: str, model: lens.TransformerWeights, texts: list, key: jax.Array
) -> tuple[lens.TextMeasures, lens.TextMeasures]:
    """Means over texts, and half the widths of their 95 % confidence intervals."""
    texts = sorted(texts, key=len)  # few programs in a row
    count, total = len(texts), None
    with Progress(count, f"{name}: texts") as progress:
        for number, tokens in enumerate(texts):
            measures = lens.measure_text(model, *padded(model, tokens), key, config.draws)
            one = jax.tree.map(lambda x: np.asarray(x, np.float64), measures)
            both = one, jax.tree.map(np.square, one)
            total = both if total is None else jax.tree.map(np.add, total, both)
            progress.update(number + 1)
    mean, square = jax.tree.map(lambda x: x / count, total)

    def half(mean, square):
        variance = np.maximum(square - mean**2, 0)
        return _quantile(count) * np.sqrt(variance / max(count - 1, 1))

    return mean, jax.tree.map(half, mean, square)


def _all_beside(pattern: str, value: Any, null: Any, interval: Any) -> Columns:
    """Columns of a named tuple of measures, by its fields."""
    columns: Columns = {}
    for field, *parts in zip(value._fields, value, null, interval, strict=True):
        name = pattern.format(field)
        columns |= beside(name, *parts[:2]) | {f"{name}_ci": parts[2]}
    return columns


def _gradient_columns(
    model: lens.TransformerWeights, probed: list[np.ndarray], key: jax.Array
) -> Columns:
    """Shares of gradient fields; the null are values and outputs of other heads of the layer."""
    l, h = model.attention.query.shape[:2]
    groups = model.attention.key.shape[1]
    models = [model, *(_other_values(model, shift) for shift in spread(groups, 2))]
    shares = np.stack([
        [lens.gradient_shares(m, *padded(model, tokens), jax.random.fold_in(key, number)) for m in models]
        for number, tokens in enumerate(probed)
    ])  # fmt: skip
    # All heads of a layer are draws of one null.
    pooled = np.moveaxis(shares[:, 1:].mean(axis=0), 1, 2).reshape(-1, l)
    null = np.repeat(pooled[:, :, None], h, axis=2)
    width = shares[:, 0].std(axis=0) / np.sqrt(max(len(probed) - 1, 1))
    columns = beside("gradient_share", shares[:, 0].mean(axis=0), null)
    return columns | {"gradient_share_ci": _quantile(len(probed)) * width}


def _quantile(count: int) -> float:
    """Student's t for the 95 % interval of a mean of so many; NaN for one."""
    return float(stats.t.ppf(0.975, count - 1)) if count > 1 else float("nan")


def _other_values(model: lens.TransformerWeights, shift: int) -> lens.TransformerWeights:
    """The model whose heads write what those of another key group of their layer would."""
    heads = model.attention
    repeats = {"value": 1, "value_bias": 1, "output": heads.group_size}
    parts = {
        name: np.roll(np.asarray(getattr(heads, name)), shift * repeats[name], axis=1)
        for name in repeats if getattr(heads, name) is not None
    }  # fmt: skip
    return replace(model, attention=replace(heads, **parts))
