r"""The attention heads of one layer, of any architecture, and their circuits.

Rows are tokens. A head of a layer with rotary positions has $\theta_D = s W_Q R_D W_K^T$, D = i - j;
its update is $P (x W_V + b_V) W_O$.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from imr._checks import check_count, check_kind
from imr._typing import AnyArray
from imr.errors import ImrError


class HeadWeights(NamedTuple):
    r"""Attention heads: queries $x W_Q + b_Q$, and a head adds $P (x W_V + b_V) W_O$.

    Functions that look at one layer take the same tuple without the axis l.

    Attributes:
      query, key, value: $W_Q$, $W_K$, $W_V$, shape (l, h, d, r).
      output: $W_O$, shape (l, h, r, d).
      query_bias, key_bias, value_bias: $b_Q$, $b_K$, $b_V$, shape (l, h, r).
      output_bias: added once for all heads of a layer, shape (l, d).
    """

    query: Float[Array, "l h d r"]
    key: Float[Array, "l h d r"]
    value: Float[Array, "l h d r"]
    output: Float[Array, "l h r d"]
    query_bias: Float[Array, "l h r"]
    key_bias: Float[Array, "l h r"]
    value_bias: Float[Array, "l h r"]
    output_bias: Float[Array, "l d"]


class Norm(NamedTuple):
    """Layer norms: scale and bias, shape (l, d) for all layers or (d,) for one norm."""

    scale: Float[Array, "*l d"]
    bias: Float[Array, "*l d"]


_STATIC = {"static": True}  # structure under jit, not a leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Heads:
    r"""h heads of one layer, whose keys and values are shared within g groups, in order.

    Args:
      query: $W_Q$, shape (h, d, r).
      key, value: $W_K$, $W_V$, shape (g, e, r); g divides h, and e = d unless `cross`.
      output: $W_O$, shape (h, r, d), LayerScale in it.
      query_bias, key_bias, value_bias, output_bias: shape (h, r), (g, r), (g, r), (d,), or None.
      query_norm, key_norm: scales of RMS norms of queries and keys, before rotary positions, shape
        (h, r) and (g, r), or None.
      frequencies: of rotary positions, shape (f,), or None: coordinates m and m + f of queries and
        keys turn by the angle position * frequency; those from 2 f on do not turn.
      norm: through which the heads read the stream, or None. See `norm_first`.
      source_norm: through which keys and values of a cross-attention read the other stream.
      output_norm: scale of the RMS norm of what all heads add together, shape (d,), or None.
      scale: s, of the logits; $r^{-1/2}$ as a rule.
      cap: c of soft capping, logits c tanh(logits / c), or None.
      rms: whether `norm` and `source_norm` are RMS norms, which do not centre.
      norm_first: whether `norm` stands before the heads, beside the stream; if not, it has made the
        stream.
      joint_norm: whether norms of queries and keys take the length over all heads together.
      epsilon: added to the mean square in norms.
      causal: whether a token sees only itself and those before it.
      reach: how many tokens away a token sees at most, or None.
      cross: whether keys and values come from another stream than queries.
    """

    query: Float[AnyArray, "*l h d r"]
    key: Float[AnyArray, "*l g e r"]
    value: Float[AnyArray, "*l g e r"]
    output: Float[AnyArray, "*l h r d"]
    query_bias: Float[AnyArray, "*l h r"] | None = None
    key_bias: Float[AnyArray, "*l g r"] | None = None
    value_bias: Float[AnyArray, "*l g r"] | None = None
    output_bias: Float[AnyArray, "*l d"] | None = None
    query_norm: Float[AnyArray, "*l h r"] | None = None
    key_norm: Float[AnyArray, "*l g r"] | None = None
    frequencies: Float[AnyArray, "*l f"] | None = None
    norm: Norm | None = None
    source_norm: Norm | None = None
    output_norm: Float[AnyArray, "*l d"] | None = None
    scale: float = field(metadata=_STATIC)
    cap: float | None = field(default=None, metadata=_STATIC)
    rms: bool = field(default=False, metadata=_STATIC)
    norm_first: bool = field(default=True, metadata=_STATIC)
    joint_norm: bool = field(default=False, metadata=_STATIC)
    epsilon: float = field(default=0.0, metadata=_STATIC)
    causal: bool = field(default=False, metadata=_STATIC)
    reach: int | None = field(default=None, metadata=_STATIC)
    cross: bool = field(default=False, metadata=_STATIC)

    @property
    def group_size(self) -> int:
        """How many heads share a key."""
        h, g = self.query.shape[-3], self.key.shape[-3]
        if h % g:
            raise ImrError(
                f"key must have a number of groups that divides the {h} heads of query; found {g}."
            )
        return h // g


def head_weights(layers: Heads | Iterable[Heads]) -> HeadWeights:
    r"""The circuits of heads as `weight_cosines` and its like take them, one pair for each head.

    $W_Q W_K^T / \sqrt r$ is then $\theta$ at distance 0: keys and values are repeated, and the scales
    of logits and of norms of queries and keys are in the queries and keys. Those norms also divide
    by the length of each query and key, which no weight can express.

    Args:
      layers: one layer, or layers of equal shapes, such as `read_heads` gives.
    Returns: `HeadWeights` in float32, shape (l, h, d, r) and so on.
    Raises: ImrError if there is no layer, or shapes do not agree.

    >>> w = np.ones((4, 6, 2), np.float32)
    >>> heads = Heads(query=w, key=w[:2], value=w[:2], output=np.swapaxes(w, 1, 2), scale=1.0)
    >>> head_weights(heads).key.shape
    (1, 4, 6, 2)
    """
    layers = [layers] if isinstance(layers, Heads) else layers
    if not isinstance(layers, Iterable):
        layers = [layers]  # refused as what it is
    layers = list(layers)
    for layer in layers:
        check_kind("layers", layer, Heads)
    each = [circuits(jax.tree.map(lambda x: np.asarray(x, np.float32), layer)) for layer in layers]
    shapes = sorted({(x.query.shape, x.key.shape) for x in each})
    if len(shapes) != 1:
        raise ImrError(
            f"layers must be one or more layers of equal shapes; found {shapes or 'none'}. Measure "
            "those of one stack, such as read_heads(folder, part='encoder'), or one at a time."
        )
    stacked: Any = map(np.stack, zip(*each, strict=True))
    return HeadWeights(*stacked)


def circuits(heads: Heads) -> HeadWeights:
    """`head_weights` of heads with any leading axes, in their own dtype; traced ones too."""
    r = heads.query.shape[-1]
    plain = all(isinstance(x, np.ndarray) for x in jax.tree.leaves(heads))
    numpy: Any = np if plain else jnp

    def weights(name, repeats):
        weight, bias = getattr(heads, name), getattr(heads, f"{name}_bias")
        if bias is None:
            bias = numpy.zeros(weight.shape[:-2] + weight.shape[-1:], weight.dtype)
        scale = getattr(heads, f"{name}_norm", None)
        if scale is not None:
            weight, bias = weight * scale[..., None, :], bias * scale
        factor = heads.scale * r**0.5
        if name == "query" and abs(factor - 1) > 1e-12:
            weight, bias = factor * weight, factor * bias
        if repeats > 1:
            weight, bias = numpy.repeat(weight, repeats, -3), numpy.repeat(bias, repeats, -2)
        return weight, bias

    size, bias = heads.group_size, heads.output_bias
    (query, query_bias), (key, key_bias), (value, value_bias) = (
        weights(name, repeats) for name, repeats in (("query", 1), ("key", size), ("value", size))
    )
    if bias is None:
        bias = numpy.zeros(heads.output.shape[:-3] + heads.output.shape[-1:], heads.output.dtype)
    every: Any = query, key, value, heads.output, query_bias, key_bias, value_bias, bias
    return HeadWeights(*every)


def fold_heads(heads: Heads) -> Heads:
    r"""Heads in the coordinates of normalised streams, with the norms around them in the weights.

    What is read, $\gamma \hat x + \beta$: $W \to diag(\gamma) W$, after $I - 1 1^T / d$ if the norm is a
    layer norm; RMS norms do not centre. What is written: $W_O \to W_O \, diag(\gamma_o)$ by a norm of
    the output, centred before layer norms, as the next one takes the mean away; if norms have made
    the stream, $W_O \to W_O \, diag(1 / \gamma)$ writes into $\hat x$.

    Args:
      heads: of one layer. Heads that read the stream as it is are left as they are.
    Returns: `Heads` without norms of streams; those of queries and keys stay.

    >>> w = np.ones((1, 2, 2))
    >>> norm = Norm(np.array([2.0, 3.0]), np.zeros(2))
    >>> heads = Heads(query=w, key=w, value=w, output=w, scale=1.0, norm=norm, rms=True)
    >>> fold_heads(heads).query.tolist()
    [[[2.0, 2.0], [3.0, 3.0]]]

    Reference: Elhage et al. 2021, "Handling layer normalization"; `fold_norms` for `HeadWeights`.
    """
    check_kind("heads", heads, Heads)
    query, query_bias = _read(heads, "query", heads.norm)
    source = heads.source_norm if heads.cross else heads.norm
    key, key_bias = _read(heads, "key", source)
    value, value_bias = _read(heads, "value", source)
    written = np.ones(heads.output.shape[-1], np.float32)
    if heads.output_norm is not None:
        written = written * np.asarray(heads.output_norm)
    if heads.norm is not None and not heads.norm_first:
        scale = np.asarray(heads.norm.scale)
        written = written * np.where(scale == 0, 0, 1 / np.where(scale == 0, 1, scale))
    output, bias = np.asarray(heads.output) * written, heads.output_bias
    bias = None if bias is None else np.asarray(bias) * written
    if heads.norm is not None and not heads.rms:
        output = _centred(output, -1)
        bias = None if bias is None else _centred(bias, -1)
    return replace(
        heads, query=query, key=key, value=value, output=output, query_bias=query_bias,
        key_bias=key_bias, value_bias=value_bias, output_bias=bias, norm=None, source_norm=None,
        output_norm=None,
    )  # fmt: skip


def _read(heads, name, norm):
    """W and b of one projection behind a norm."""
    weight, bias = getattr(heads, name), getattr(heads, f"{name}_bias")
    if norm is None:
        return weight, bias
    weight, scale = np.asarray(weight), np.asarray(norm.scale)
    shift = np.asarray(norm.bias) @ weight
    bias = shift if bias is None else np.asarray(bias) + shift
    weight = scale[:, None] * weight
    return (weight if heads.rms else _centred(weight, 1)), bias


def _centred(x, axis):
    return x - np.mean(x, axis=axis, keepdims=True)


def head_mask(heads: Heads, n: int, m: int | None = None) -> Bool[jax.Array, "n m"]:
    """Which of m tokens (columns) each of n tokens sees, as the architecture has it.

    Args:
      heads: of one layer.
      n: how many tokens attend.
      m: how many are attended to; n if it is None.
    Returns: A mask, shape (n, m).
    Raises: ImrError if n or m is no positive integer.

    >>> w = np.ones((1, 2, 2))
    >>> heads = Heads(query=w, key=w, value=w, output=w, scale=1.0, causal=True, reach=1)
    >>> head_mask(heads, 3).astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    check_kind("heads", heads, Heads)
    check_count("n", n)
    check_count("m", m := n if m is None else m)
    distance = np.arange(n)[:, None] - np.arange(m)
    seen = distance >= 0 if heads.causal else np.ones((n, m), bool)
    return jnp.asarray(seen if heads.reach is None else seen & (np.abs(distance) <= heads.reach))
