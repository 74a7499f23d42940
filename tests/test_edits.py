"""Edits of what heads do, against other weights, autodiff and sums by hand; direct logit attribution."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import imr
from imr import lens
from tests.test_nulls import weights_of

L, H, D, R, M, K, N = 2, 4, 12, 3, 20, 17, 6
TOKENS, OTHERS = np.array([3, 1, 16, 0, 7, 2]), np.array([5, 5, 2, 9, 11, 4])
SOME = [(0, 1), (1, 0), (1, 3)]
KINDS = {"first": True, "after": False}  # whether norms come first


def model_of(first=True, flow=False):
    """A random model in float64, or one whose heads are those of the flow."""
    random = np.random.default_rng(0)
    shapes = {
        "query": (L, H, D, R), "key": (L, H, D, R), "value": (L, H, D, R), "output": (L, H, R, D),
        "query_bias": (L, H, R), "key_bias": (L, H, R), "value_bias": (L, H, R), "output_bias": (L, D),
        "into": (L, D, M), "into_bias": (L, M), "out": (L, M, D), "out_bias": (L, D),
        "attention_norm_scale": (L, D), "attention_norm_bias": (L, D), "mlp_norm_scale": (L, D),
        "mlp_norm_bias": (L, D), "outer_norm_scale": (D,), "outer_norm_bias": (D,),
        "tokens": (K, D), "positions": (N, D),
    }  # fmt: skip
    arrays = {name: random.normal(size=shape) / 2 for name, shape in shapes.items()}
    arrays |= {name: 1 + x for name, x in arrays.items() if name.endswith("scale")}
    if flow:
        for name in ("query_bias", "key_bias", "value_bias"):
            arrays[name] = 0 * arrays[name]
        arrays |= {"value": arrays["key"], "output": -arrays["query"].mT}
    model = lens.model_from_arrays(arrays, norm_first=first, causal=first)
    return jax.tree.map(lambda x: x.astype(np.float64), model)


def with_heads(model, **arrays):
    return replace(model, attention=replace(model.attention, **arrays))


def agree(found, wanted, names=("attention", "middle", "mlp", "final")):
    for name in names:
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-11)


def mask_of(pairs):
    mask = np.zeros((L, H), bool)
    mask[tuple(np.transpose(pairs))] = True
    return mask


@pytest.mark.acceptance
@pytest.mark.parametrize("first", KINDS.values(), ids=KINDS)
def test_an_ablated_head_is_one_without_output(first):
    model = model_of(first)
    output = jnp.where(mask_of(SOME)[..., None, None], 0, model.attention.output)
    wanted = lens.run(with_heads(model, output=output), TOKENS)
    agree(lens.run(model, TOKENS, edits=[lens.ablate(SOME)]), wanted)
    agree(lens.run(model, TOKENS, edits=[lens.ablate(amount=mask_of(SOME))]), wanted)
    halved = with_heads(
        model, output=jnp.where(mask_of(SOME)[..., None, None], 0.5, 1) * model.attention.output
    )
    agree(lens.run(model, TOKENS, edits=[lens.ablate(SOME, 0.5)]), lens.run(halved, TOKENS))


@pytest.mark.acceptance
@pytest.mark.parametrize("first", KINDS.values(), ids=KINDS)
def test_a_part_taken_out_is_one_taken_out_of_the_weights(first):
    """W_V W_O less a part is a circuit of higher rank, beside queries and keys with zeros."""
    model = model_of(first)
    heads, part = model.attention, lens.circuit_part(model.heads)
    assert part.read.shape == (L, H, D, 2 * R)
    grown = {name: _grown(getattr(heads, name), 2 * R) for name in ("query", "key")}
    biases = ("query_bias", "key_bias", "value_bias")
    grown |= {name: _grown(getattr(heads, name), 2 * R) for name in biases}
    value = jnp.concatenate([heads.value, part.read], axis=-1)
    for amount in (1.0, -2.0):
        output = jnp.concatenate([heads.output, -amount * part.write], axis=-2)
        wanted = lens.run(with_heads(model, value=value, output=output, **grown), TOKENS)
        found = lens.run(model, TOKENS, edits=[lens.without_part(part, amount=amount)])
        agree(found, wanted, ("attention", "updates", "middle", "final"))


def _grown(x, more):
    return jnp.pad(x, (*[(0, 0)] * (x.ndim - 1), (0, more)))


@pytest.mark.acceptance
def test_patches_are_another_runs_updates_or_a_bias():
    model = model_of()
    other, own = lens.run(model, OTHERS), lens.run(model, TOKENS)
    agree(lens.run(model, TOKENS, edits=[lens.patch(own.updates)]), own)
    found = lens.run(model, TOKENS, edits=[lens.patch(other.updates, SOME)])
    mask = mask_of(SOME)
    np.testing.assert_array_equal(found.updates[mask], other.updates[mask])
    # Heads of the first layer are not changed by others, and those behind are.
    np.testing.assert_allclose(found.updates[0, ~mask[0]], own.updates[0, ~mask[0]], atol=1e-14)
    assert np.abs(found.updates[1, ~mask[1]] - own.updates[1, ~mask[1]]).max() > 1e-3
    # A mean in the place of a head's update is a bias.
    mean = other.updates[0, 1].mean(axis=0)
    output = model.attention.output.at[0, 1].set(0)
    bias = model.attention.output_bias.at[0].add(mean)
    wanted = lens.run(with_heads(model, output=output, output_bias=bias), TOKENS)
    agree(lens.run(model, TOKENS, edits=[lens.patch(mean, [(0, 1)])]), wanted)


@pytest.mark.acceptance
def test_edits_at_tokens_and_one_after_the_other():
    model = model_of()
    own = lens.run(model, TOKENS)
    at = lens.run(model, TOKENS, edits=[lens.ablate([(0, 2)], at=[1, 4])])
    wanted = own.updates[0, 2].at[jnp.array([1, 4])].set(0)
    np.testing.assert_allclose(at.updates[0, 2], wanted, atol=1e-15)
    agree(lens.run(model, TOKENS, edits=[lens.ablate([]), lens.ablate([(0, 0)], at=[])]), own)
    double, shift = lens.edit(_double, [(0, 2)]), lens.edit(_shift, [(0, 2)])
    for edits, wanted in (
        ([double, shift], 2 * own.updates[0, 2] + 1),
        ([shift, double], 2 * (own.updates[0, 2] + 1)),
    ):
        updates = lens.run(model, TOKENS, edits=edits).updates
        np.testing.assert_allclose(updates[0, 2], wanted, atol=1e-14)


def _double(site):
    return 2 * site.updates


def _shift(site):
    return site.updates + 1


@pytest.mark.acceptance
def test_texts_of_a_batch_are_edited_as_alone():
    model = model_of()
    texts, lengths = np.stack([TOKENS, OTHERS]), np.array([N, 4])
    sources = lens.run(model, texts[::-1], lengths[::-1]).updates
    edits = [lens.patch(sources, SOME), lens.project(off=True, amount=0.5), lens.ablate([(0, 3)])]
    batch = lens.run(model, texts, lengths, edits=edits)
    for b in range(2):
        own = [lens.patch(sources[b], SOME), *edits[1:]]
        one = lens.run(model, texts[b], lengths[b], edits=own)
        agree(jax.tree.map(lambda x, b=b: x[b], batch), one, ("updates", "after", "final"))


@pytest.mark.acceptance
@pytest.mark.parametrize("first", KINDS.values(), ids=KINDS)
def test_heads_of_the_flow_are_their_row_term(first):
    model = model_of(first, flow=True)
    own = lens.run(model, TOKENS)
    agree(lens.run(model, TOKENS, edits=[lens.project()]), own)
    nothing = lens.run(model, TOKENS, edits=[lens.ablate()])
    agree(lens.run(model, TOKENS, edits=[lens.project(off=True)]), nothing)
    part = lens.circuit_part(model.heads)
    agree(lens.run(model, TOKENS, edits=[lens.without_part(part)]), nothing)


@pytest.mark.acceptance
def test_projections_by_autodiff():
    """The row term is the derivative by what queries read, keys held fast."""
    model = model_of()
    own = lens.run(model, TOKENS)
    heads = jax.tree.map(lambda x: x[0], model.attention)
    seen = lens.head_mask(heads, N)

    def energy(read, h):
        queries = read @ heads.query[h] + heads.query_bias[h][None]
        keys = own.inputs[0] @ heads.key[h] + heads.key_bias[h][None]
        logits = jnp.where(seen, queries @ keys.T / R**0.5, -jnp.inf)
        return jax.nn.logsumexp(logits, axis=1).sum()

    rows = np.stack([jax.grad(energy)(own.inputs[0], h) for h in range(H)])
    updates = np.asarray(own.updates[0])
    share = (updates * rows).sum(-1, keepdims=True) / (rows**2).sum(-1, keepdims=True)
    on = lens.run(model, TOKENS, edits=[lens.project()]).updates[0]
    off = lens.run(model, TOKENS, edits=[lens.project(off=True)]).updates[0]
    np.testing.assert_allclose(on, share * rows, atol=1e-12)
    np.testing.assert_allclose(off, updates - share * rows, atol=1e-12)
    # As much in the directions of other heads.
    other = Partial(_rolled)
    like = lens.project(off=True, along=other, like=lens.row_term)
    taken = updates - lens.run(model, TOKENS, edits=[like]).updates[0]
    size = np.linalg.norm(share * rows, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(taken, axis=-1), size, rtol=1e-9)
    np.testing.assert_allclose((taken * (updates - taken)).sum(-1), 0, atol=1e-12)  # a projection
    rest = np.roll(rows, 1, axis=0)
    both = np.stack([updates, rest, taken], axis=-1)  # of rank 2
    assert np.linalg.svd(both, compute_uv=False)[..., 2].max() < 1e-12
    assert np.abs(taken - share * rows).max() > 0.01


def _rolled(site):
    return jnp.roll(lens.row_term(site), 1, axis=0)


@pytest.mark.acceptance
def test_amounts_have_derivatives():
    model = model_of()
    part = lens.circuit_part(model.heads)

    @jax.jit
    def loss(amount):
        edits = [lens.without_part(part, amount=amount), lens.project(SOME, amount[0, 0], off=True)]
        activations: Any = lens.run(model, TOKENS, edits=edits)
        logits = lens.unembed(model, activations.final)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(N - 1), TOKENS[1:]])

    direction, step = np.random.default_rng(0).normal(size=(L, H)), 1e-5
    at = jnp.zeros((L, H))
    central = (loss(at + step * direction) - loss(at - step * direction)) / (2 * step)
    slope = jnp.sum(jax.grad(loss)(at) * direction)
    np.testing.assert_allclose(slope, central, rtol=1e-7)
    assert abs(slope) > 1e-4


@pytest.mark.laws
def test_parts_of_circuits_are_projections_of_one_size():
    heads = weights_of(2, 4, 16, 3)
    query, key, value, output = (np.asarray(x, np.float64) for x in heads[:4])
    circuit, theta = value @ output, query @ key.mT
    own = lens.circuit_part(heads)
    unit = theta.mT / np.linalg.norm(theta, axis=(-1, -2), keepdims=True)
    inner = np.sum(circuit * unit, axis=(-1, -2))
    np.testing.assert_allclose(own.read @ own.write, inner[..., None, None] * unit, atol=1e-12)
    for along in (
        lens.mismatched(heads, 3), lens.rotated(heads, jax.random.key(0)),
        heads._replace(query=heads.key, key=heads.query),
    ):  # fmt: skip
        part = lens.circuit_part(heads, along)
        part = part.read @ part.write
        np.testing.assert_allclose(np.linalg.norm(part, axis=(-1, -2)), np.abs(inner), rtol=1e-9)
        np.testing.assert_allclose(np.sum(part * (circuit - part), axis=(-1, -2)), 0, atol=1e-9)
        # In the plane of the circuit and the other theta.
        other = np.asarray(along.key, float) @ np.asarray(along.query, float).mT
        for c, b, p in zip(*(x.reshape(8, -1) for x in (circuit, other, part)), strict=True):
            basis = np.linalg.qr(np.stack([c, b], axis=1))[0]
            np.testing.assert_allclose(basis @ (basis.T @ p), p, atol=1e-9)
    planted = heads._replace(value=heads.key, output=-np.asarray(heads.query).mT)
    whole = lens.circuit_part(planted)
    np.testing.assert_allclose(whole.read @ whole.write, -key @ query.mT, atol=1e-9)


@pytest.mark.acceptance
def test_a_folded_model_is_the_same_function():
    model = model_of()
    folded = lens.fold_model(model)
    agree(lens.run(folded, TOKENS), lens.run(model, TOKENS))
    for name in ("query", "key", "value", "query_bias", "key_bias", "value_bias"):
        wanted = getattr(lens.fold_norms(model), name)
        np.testing.assert_allclose(getattr(folded.heads, name), wanted, atol=1e-14)


@pytest.mark.acceptance
@pytest.mark.parametrize("first", KINDS.values(), ids=KINDS)
def test_parts_of_logits_add_up_and_are_those_of_the_stream(first):
    model = model_of(first)
    activations: Any = lens.run(model, TOKENS)
    parts = lens.logit_parts(model, activations, OTHERS)
    logits = lens.unembed(model, activations.final)
    total = parts.heads.sum(axis=(0, 1)) + parts.mlp.sum(axis=0) + parts.embedding + parts.bias
    np.testing.assert_allclose(total, logits[jnp.arange(N), OTHERS], atol=1e-11)
    contrast = lens.logit_parts(model, activations, OTHERS, TOKENS)
    np.testing.assert_allclose(
        contrast.mlp, parts.mlp - lens.logit_parts(model, activations, TOKENS).mlp, atol=1e-12
    )

    def direct(model, norms, x):
        """An addition to the stream through norms of given streams."""
        for norm, stream in norms:
            deviation = np.sqrt(stream.var(axis=-1, keepdims=True) + 1e-5)
            x = (x - x.mean(axis=-1, keepdims=True)) / deviation * np.asarray(norm.scale)
        return (x * np.asarray(model.tokens)[OTHERS]).sum(axis=-1)

    a = jax.tree.map(np.asarray, activations)
    norms = [(model.outer_norm, a.after[-1])]
    if not first:
        each = []
        for l in range(L):
            added = (
                a.before[l] + a.updates[l].sum(axis=0) + np.asarray(model.attention.output_bias[l])
            )
            pair = (model.attention_norm, added), (model.mlp_norm, a.middle[l] + a.mlp[l])
            each += [(jax.tree.map(lambda x, l=l: x[l], norm), stream) for norm, stream in pair]
        norms = each
    for l, h in np.ndindex(L, H):
        behind = norms if first else norms[2 * l :]
        np.testing.assert_allclose(
            parts.heads[l, h], direct(model, behind, a.updates[l, h]), atol=1e-11
        )
        behind = norms if first else norms[2 * l + 1 :]
        np.testing.assert_allclose(parts.mlp[l], direct(model, behind, a.mlp[l]), atol=1e-11)


def refused(message):
    return pytest.raises(imr.ImrError, match=re.escape(message))


@pytest.mark.acceptance
@pytest.mark.usefixtures("unchecked")
def test_edits_that_do_not_fit_are_refused():
    model = model_of()
    run = partial(lens.run, model, TOKENS)
    part = lens.circuit_part(model.heads)
    wrong: Any = [0, 1]
    few = lens.Part(part.read[:, :3], part.write[:, :3])
    with refused("heads of edits[1] must lie in 0 to 1 and 0 to 3"):
        run(edits=[lens.ablate(), lens.ablate([(2, 0)])])
    with refused("at of edits[0] must lie in 0 to 5"):
        run(edits=[lens.ablate(at=[6])])
    with refused("edits[0] must be a Edit; found a int"):
        run(edits=wrong)
    with refused("amount must have shape (2, 4); found (4, 2)"):
        run(edits=[lens.ablate(amount=np.ones((4, 2)))])
    with refused("part must have 4 heads of 12 features; found (3, 12)"):
        run(edits=[lens.without_part(few)])
    with refused(
        "updates must have shape (l, h, n, d), with (4, 6, 12) in each layer; found (5, 12)"
    ):
        run(edits=[lens.patch(np.ones((5, 12)))])
    with refused("an edit must give updates (4, 6, 12); found (6, 12)"):
        run(edits=[lens.edit(lambda site: site.inputs)])
    with refused("edits[0] has updates of 3 texts; tokens has shape (6,)"):
        run(edits=[lens.patch(np.ones((3, L, H, N, D)))])
    with refused("heads must be pairs (layer, head); found int64 of shape (2,)"):
        lens.ablate(wrong)
    with refused("amount must be a number, or have shape (1,); found (2,)"):
        lens.ablate([(0, 1)], [1.0, 2.0])
    with refused("along must have heads of shape (2, 4, 12), as heads has; found (1, 4, 12)"):
        lens.circuit_part(model.heads, jax.tree.map(lambda x: x[:1], model.heads))
    with refused("model must have norms before its parts"):
        lens.fold_model(model_of(False))
    texts = lens.run(model, np.stack([TOKENS, OTHERS]))
    with refused("activations must be of one text"):
        lens.logit_parts(model, texts, TOKENS)
    with refused("tokens must have shape (6,), one for each position; found (5,)"):
        lens.logit_parts(model, lens.run(model, TOKENS), TOKENS[:5])
