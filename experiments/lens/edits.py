"""Does the leaning matter? The loss on texts without it, beside as much taken out in other directions."""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy import stats

from experiments.lens.config import Config
from experiments.lens.subjects import Subject, padded
from experiments.lens.weights import spread
from imr import DataError, lens
from imr.lab.console import Progress

MASKED = 0.15  # of the tokens of a text, for models that see both sides
BATCH = 4  # texts at a time

# What is taken out of heads, or put in once more.
NOTHING, WHOLE = "nothing", "whole update"
OWN, AGAIN = "own theta^T", "own theta^T, added"
TURNED, OTHERS, UNTRANSPOSED = "turned theta^T", "others' theta^T", "own theta"
ROW, RANDOM, ROLLED = "own row term", "random parts", "others' row terms"
NULLS = {OWN: (TURNED, OTHERS, UNTRANSPOSED), ROW: (RANDOM, ROLLED)}

Rows = list[dict[str, Any]]


class Batch(NamedTuple):
    """Texts as the model reads them, what it has to predict, and where that counts, (b, n)."""

    tokens: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray
    counted: np.ndarray


class Case(NamedTuple):
    """One pass over all texts: of which heads what is taken out, and what makes the edits that do it."""

    heads: str
    taken: str
    edits: Callable[[], list[lens.Edit]]


def edit_rows(config: Config, subject: Subject) -> Rows:
    """The loss of a model under each edit: a row for each, and for each draw of a null.

    `changes` of the loss for each token, and what mean streams have moved, 1 - cosine, are of each text.
    """
    model = subject.model
    if isinstance(model, list) or not subject.tokens:
        raise DataError(f"{subject.name} reads no texts, on which --edits measures its loss.")
    if model.attention.norm_first:
        model = lens.fold_model(model)
    read, cases = list(batches(config, model, subject.tokens, subject.mask)), _cases(config, model)
    counts = np.concatenate([batch.counted.sum(axis=1) for batch in read])
    rows, base, still = [], np.zeros(0), np.zeros((0, 0))
    with Progress(len(cases), f"{subject.name}: edits") as progress:
        for number, case in enumerate(cases):
            edits = case.edits()
            each = [_read(model, batch, edits) for batch in read]
            sums, means = (np.concatenate(x).astype(float) for x in zip(*each, strict=True))
            means /= np.linalg.norm(means, axis=1, keepdims=True)
            base, still = (sums, means) if case.taken == NOTHING else (base, still)
            rows.append({
                "model": subject.name, "heads": case.heads, "taken": case.taken,
                "loss": float(sums.sum() / counts.sum()),
                "changes": ((sums - base) / counts).tolist(), "counts": counts.tolist(),
                "moved": (((means - still) ** 2).sum(axis=1) / 2).tolist(),
            })  # fmt: skip
            progress.update(number + 1)
    return rows


def edit_tables(rows: Rows) -> Iterator[tuple[str, Rows]]:
    """For each choice of heads a title and a table, in thousandths of a nat for each token.

    Changes of the loss with 95 % intervals over texts; z is measured by the deviation over draws.
    """
    (base,) = (row for row in rows if row["taken"] == NOTHING)
    for heads in dict.fromkeys(row["heads"] for row in rows if row is not base):
        draws: dict[str, Rows] = {}
        for row in rows:
            if row["heads"] == heads and row is not base:
                draws.setdefault(row["taken"], []).append(row)
        lines = []
        for taken, each in draws.items():
            own = next((name for name, nulls in NULLS.items() if taken in nulls), None)
            wanted = draws[own][0] if own in draws else None
            lines.append(_line(taken, each, wanted))
        counts = np.array(base["counts"])
        title = f"{base['model']}, {heads}; the loss of {counts.sum()} tokens in {len(counts)} texts is "
        yield f"{title}{base['loss']:.3f}:", lines


def _line(taken: str, draws: Rows, own: dict[str, Any] | None) -> dict[str, Any]:
    """The mean over draws of one null, and what is taken out beside it."""
    changes, counts = np.array([row["changes"] for row in draws]), np.array(draws[0]["counts"])
    mean, many = changes.mean(axis=0), len(draws) > 1
    line: dict[str, Any] = {"taken out": f"{taken} ({len(draws)})" if many else taken}
    line |= {"loss": _shown(mean, counts), "own less this": "-", "z": "-"}
    line["moved"] = f"{1e3 * np.mean([row['moved'] for row in draws]):.2f}"
    if own is not None:
        less = np.array(own["changes"]) - mean
        line["own less this"] = _shown(less, counts)
        if many:
            each = changes @ counts / counts.sum()
            line["z"] = f"{less @ counts / counts.sum() / each.std(ddof=1):+.1f}"
    return line


def interval(changes: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The mean over tokens of changes for each token of a text, and half its 95 % interval over texts."""
    mean, size = changes @ counts / counts.sum(), len(counts)
    if size < 2:
        return mean, np.nan
    deviations = (changes - mean) * counts / counts.mean()
    return mean, stats.t.ppf(0.975, size - 1) * np.sqrt((deviations**2).sum() / (size - 1) / size)


def _shown(changes: np.ndarray, counts: np.ndarray) -> str:
    """The interval in thousandths; the mean alone of one text."""
    mean, half = (1e3 * x for x in interval(changes, counts))
    return f"{mean:.1f}" + ("" if np.isnan(half) else f" ± {half:.1f}")


def _cases(config: Config, model: lens.TransformerWeights) -> list[Case]:
    """The model as it is, and every edit of it."""
    heads = model.heads
    cosines = lens.weight_cosines(heads).whole
    ways = {"descend": cosines < 0, "climb": cosines > 0}
    masks = {f"{mask.sum()} heads that {way}": mask for way, mask in ways.items() if mask.any()}
    directions = _directions(config, model, heads)

    @lru_cache(maxsize=1)  # they are large
    def part(number):
        return lens.circuit_part(heads, directions[number][1]())

    def without(number, amount):
        return [lens.without_part(part(number), amount=amount)]

    every = f"all {cosines.size} heads"
    cases = [Case(every, NOTHING, list)]
    for name, mask in masks.items():
        cases.append(Case(name, WHOLE, partial(_listed, lens.ablate, amount=mask)))
    for number, (taken, _) in enumerate(directions):
        for name, mask in masks.items():
            cases.append(Case(name, taken, partial(without, number, mask)))
            if taken == OWN:
                cases.append(Case(name, AGAIN, partial(without, number, -1.0 * mask)))
    project = partial(_listed, lens.project, off=True)
    cases.append(Case(every, ROW, project))
    nulls = {
        RANDOM: [Partial(_random, key) for key in _keys(config)],
        ROLLED: [
            Partial(_rolled, 1 + shift) for shift in range(min(config.draws, cosines.shape[1] - 1))
        ],
    }
    for taken, draws in nulls.items():
        cases += [Case(every, taken, partial(project, along=x, like=lens.row_term)) for x in draws]
    return cases


def _listed(make, **options):
    return [make(**options)]


def _directions(config: Config, model: lens.TransformerWeights, heads: lens.HeadWeights):
    """What is taken out by name, and what makes the heads whose theta^T it lies along."""
    l, h = heads.query.shape[:2]
    swapped = heads._replace(
        query=heads.key, key=heads.query, query_bias=heads.key_bias, key_bias=heads.query_bias
    )
    shifts = spread(l * h, config.draws, model.attention.group_size)
    return [
        (OWN, lambda: None),
        (UNTRANSPOSED, lambda: swapped),
        *((TURNED, partial(lens.rotated, heads, key)) for key in _keys(config)),
        *((OTHERS, partial(lens.mismatched, heads, shift)) for shift in shifts),
    ]


def _keys(config: Config) -> list[jax.Array]:
    return list(jax.random.split(jax.random.key(config.seed), config.draws))


def _random(key, site):
    return jax.random.normal(jax.random.fold_in(key, site.layer), site.updates.shape)


def _rolled(shift, site):
    return jnp.roll(lens.row_term(site), shift, axis=0)


def batches(
    config: Config, model: lens.TransformerWeights, texts: list[np.ndarray], mask: int | None
) -> Iterator[Batch]:
    """All texts, those of like length together, the next tokens or some masked ones to predict."""
    texts, causal = sorted(texts, key=len), model.attention.causal
    random, hidden = np.random.default_rng(config.seed), np.int32(mask or 0)
    for start in range(0, len(texts), BATCH):
        group = texts[start : start + BATCH]
        size = len(padded(model, group[-1])[0])
        tokens = np.stack([np.pad(text, (0, size - len(text))) for text in group])
        lengths = np.array([len(text) for text in group], np.int32)
        places = np.arange(size)[None]
        if causal:
            yield Batch(tokens, lengths, np.roll(tokens, -1, axis=1), places < lengths[:, None] - 1)
            continue
        # Not the special tokens at both ends, and one of every text at least.
        inner = (places > 0) & (places < lengths[:, None] - 1)
        order = np.where(inner, random.random(inner.shape), 2)
        most = np.maximum(1, np.round(MASKED * inner.sum(axis=1)))
        counted = inner & (order.argsort(axis=1).argsort(axis=1) < most[:, None])
        yield Batch(np.where(counted, hidden, tokens), lengths, tokens, counted)


@jax.jit
def _read(model: lens.TransformerWeights, batch: Batch, edits: list[lens.Edit]) -> Any:
    """The sum of the losses of each text, where they count, and the mean of its last stream."""
    final: Any = lens.run(model, batch.tokens, batch.lengths, edits=edits).final
    logits = lens.unembed(model, final)
    own = jnp.take_along_axis(logits, batch.targets[:, :, None], axis=2)[:, :, 0]
    losses = jax.nn.logsumexp(logits, axis=2) - own
    present = jnp.arange(final.shape[1])[None, :] < batch.lengths[:, None]
    mean = jnp.sum(jnp.where(present[:, :, None], final, 0), axis=1) / batch.lengths[:, None]
    return jnp.sum(jnp.where(batch.counted, losses, 0), axis=1), mean
