"""Measures of one layer from streams that someone else has caught."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imr
from imr import lens
from imr.lens import Norm
from tests.problems import error
from tests.test_heads import D, G, H, R, draw, heads_of

N = 6
FORMS = {
    "grouped, rotary, capped, norms everywhere": {
        "frequencies": np.array([1.0, 0.1]), "query_norm": draw(40, H, R), "key_norm": draw(41, G, R),
        "norm": Norm(1 + 0.3 * draw(42, D), np.zeros(D)), "output_norm": 1 + 0.3 * draw(43, D),
        "output_bias": draw(44, D), "cap": 2.0, "epsilon": 1e-2, "causal": True, "reach": 3, "rms": True,
    },
    "cross": {"cross": True, "query_bias": draw(46, H, R), "norm": Norm(1 + 0.3 * draw(42, D), draw(47, D))},
    "norms over all heads": {
        "query_norm": draw(48, H, R), "key_norm": draw(49, G, R), "joint_norm": True, "epsilon": 1e-2,
    },
}  # fmt: skip
MARKS = [
    pytest.mark.laws,
    pytest.mark.acceptance,
    pytest.mark.acceptance,
]  # one by one, for want of time


def cosine(a, b, present):
    a, b = (np.where(present[:, None], x, 0) for x in (a, b))
    a, b = (np.where(present[:, None], x - x.sum(axis=0) / present.sum(), 0) for x in (a, b))
    return np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)


def through(x, heads):
    """The norm before the heads."""
    if heads.norm is None:
        return x
    x = x if heads.rms else x - x.mean(axis=-1, keepdims=True)
    size = np.sqrt((x**2).mean(axis=-1, keepdims=True) + heads.epsilon)
    return x / size * heads.norm.scale + heads.norm.bias


def witness(heads, theta, x, seen, source, bias):
    """Row and column terms by the theta of others, by autodiff of sums of weighted logits."""
    apart = replace(theta, cross=True, cap=None)
    keys = x if source is None else source

    @jax.jit
    def terms(x, keys):
        logits = lens.head_logits(heads, x, source) if heads.cross else lens.head_logits(heads, x)
        p = jax.nn.softmax(jnp.where(seen[None], logits + bias, -jnp.inf), axis=2, where=seen[None])
        p = p if heads.cap is None else p * (1 - (logits / heads.cap) ** 2)

        def one(head):
            def weighted(x, keys):
                return jnp.sum(p[head] * lens.head_logits(apart, x, keys)[head])

            return jax.grad(weighted, (0, 1))(x, keys)

        return jax.vmap(one)(jnp.arange(H))

    rows, columns = map(np.asarray, terms(x, keys))
    return rows, np.zeros_like(rows) if heads.cross else columns


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=mark) for f, mark in zip(FORMS, MARKS, strict=True)]
)
def test_measures_against_autodiff(form):
    """Terms by own and other theta, changes of energy and energies along the layer, with padding."""
    heads, other = (jax.tree.map(np.float64, heads_of(seed, **FORMS[form])) for seed in (3, 4))
    stream, source = np.float64(draw(50, N, D)), np.float64(draw(51, N, D)) / 3
    bias, after = np.float64(draw(52, H, N, N)), np.float64(draw(53, N, D))
    source = source if heads.cross else None
    seen = np.array(lens.head_mask(heads, N))
    seen[5] = False
    seen[:, 5] = heads.cross
    present = seen.any(axis=1)
    found = lens.measure_inputs(
        heads, stream, seen, source, bias=bias, after=after, others=[other], draws=2
    )
    x = through(stream, heads)
    updates = np.asarray(lens.head_updates(heads, x, seen, source, bias=bias).updates)
    total = updates.sum(axis=0) + (0 if heads.output_bias is None else heads.output_bias)
    if heads.output_norm is not None:
        factor = heads.output_norm / np.sqrt((total**2).mean(-1, keepdims=True) + heads.epsilon)
        updates, total = updates * factor, total * factor

    def agree(cosines, rows, columns):
        for made, term in zip(cosines, (rows, columns, rows + columns), strict=True):
            if term.any():
                wanted = [cosine(u, -t, present) for u, t in zip(updates, term, strict=True)]
                assert error(made, np.array(wanted)) < 1e-9
            else:
                assert not made.any()

    rows, columns = witness(heads, heads, x, seen, source, bias)
    agree(found.cosines, rows, columns)
    every = cosine(updates.sum(axis=0), -(rows + columns).sum(axis=0), present)
    assert abs(found.layers.sum - every) < 1e-9
    # Key groups of this layer and the other in a row: the last of the 3 shifts is by all but one.
    assert found.mismatched.row.shape == (3, H)
    shift, names = 2, ("query", "key", "query_bias", "query_norm", "key_norm")
    parts = {name: (getattr(heads, name), getattr(other, name)) for name in names}
    moved = {
        name: np.roll(np.concatenate(pair), -shift * len(pair[0]) // G, axis=0)[: len(pair[0])]
        for name, pair in parts.items()
        if pair[0] is not None
    }
    mixed = jax.tree.map(lambda x: x[shift - 1], found.mismatched)
    agree(mixed, *witness(heads, replace(heads, **moved), x, seen, source, bias))

    @jax.jit
    def energies(x):
        return lens.head_gradient(heads, x, seen, source, bias=bias).energy

    before, count = energies(x), present.sum()
    for head in range(H):
        change = (energies(through(stream + updates[head], heads))[head] - before[head]) / count
        assert abs(found.energy_change[head] - change) < 1e-9
    along = [energies(through(y, heads)).mean() / count for y in (stream, stream + total, after)]
    assert error(np.stack(found.energies), np.stack(along)) < 1e-9


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_refused():
    heads, x = heads_of(), draw(60, N, D)
    seen = np.ones((N, N), bool)

    def refuses(words, *args, error=imr.ImrError, **options):
        with pytest.raises(error, match=words):
            lens.measure_inputs(*args, **options)

    refuses(r"inputs must have shape \(n, 12\), as the heads have it; found \(1, 6, 12\). Give one text",
            heads, x[None], seen)  # fmt: skip
    refuses(r"inputs must have shape \(n, 12\).* found \(6, 11\)", heads, x[:, 1:], seen)
    refuses(
        r"inputs must be finite; found 1 non-finite", heads, np.where(x == x[0, 0], np.nan, x), seen
    )
    refuses("inputs must be an array of floats; found dtype int64", heads, np.ones((N, D), int), seen,
            error=imr.DataError)  # fmt: skip
    refuses(
        r"seen must be boolean; found dtype float.*pass seen=mask == 0",
        heads,
        x,
        1.0 * seen,
    )
    refuses(
        r"seen must have the shape of the logits, \(6, 6\); found \(5, 5\)", heads, x, seen[1:, 1:]
    )
    refuses(
        "seen must let 3 tokens or more see any; found 2",
        heads,
        x,
        seen & (np.arange(N) < 2)[:, None],
    )
    refuses("source must be given for cross-attention alone; the heads are self", heads, x, seen, x)
    refuses("the heads are cross", replace(heads, cross=True), x, seen)
    refuses(r"source must have shape \(m, 12\)", replace(heads, cross=True), x, seen, x[:, 1:])
    refuses(r"bias must have shape \(6, 6\) or \(4, 6, 6\)", heads, x, seen, bias=draw(0, N))
    refuses(
        r"positions must have shape \(6,\); found \(5,\)", heads, x, seen, positions=np.arange(5)
    )
    refuses(r"after must have shape \(6, 12\)", heads, x, seen, after=x[1:])
    refuses(
        r"others\[0\] has .*\(4, 12, 6\), 'key': \(4, 12, 6\)",
        heads,
        x,
        seen,
        others=[heads_of(groups=4)],
    )
    refuses("divides the 4 heads of query; found 3", heads_of(groups=3), x, seen)
    refuses(r"heads must be Heads of one layer; found list. Give one layer", [heads], x, seen)
    refuses("draws must be an integer", heads, x, seen, draws=0)
    refuses("key must be made by jax.random.key", heads, x, seen, key=3)
