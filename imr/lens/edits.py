r"""Edits of what heads do: the update $u$ of a head becomes $u + a (f(u) - u)$, and the run goes on.

`run` takes them. Amounts, heads and arrays in them are leaves: others compile nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from imr._checks import as_floats, as_numbers, check_flags, check_kind, is_concrete
from imr._module import as_pytree
from imr._numerics import matmul
from imr._typing import AnyArray
from imr.errors import ImrError
from imr.lens._parts import over
from imr.lens.circuits import Part
from imr.lens.heads import Heads
from imr.lens.logits import head_gradient

Pairs = Sequence[tuple[int, int]]


class Site(NamedTuple):
    """One layer in a forward pass, where updates are edited.

    Attributes:
      layer: its number, traced.
      heads: of the layer.
      inputs: what they read, shape (n, d).
      seen: which tokens (columns) each token attends to, shape (n, n).
      attention: attention weights, shape (h, n, n).
      updates: what each head adds, before a norm of what all add (`output_norm`), shape (h, n, d).
    """

    layer: Int[Array, ""]
    heads: Heads
    inputs: Float[Array, "n d"]
    seen: Bool[Array, "n n"]
    attention: Float[Array, "h n n"]
    updates: Float[Array, "h n d"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Edit:
    """Other updates for some heads, as `edit` and its like make them, for `run`.

    Args:
      function: from a `Site` to updates, shape (h, n, d).
      heads: pairs (layer, head), or None for all.
      amount: a of u + a (f(u) - u): a number, one for each pair, or shape (l, h).
      at: positions of the tokens that are edited, or None for all.
      per_text: whether the arrays of the function have an axis b of texts.
    """

    function: Callable[[Site], Any]
    heads: Int[AnyArray, "k 2"] | None
    amount: Float[AnyArray, "..."]
    at: Int[AnyArray, "t"] | None
    per_text: bool = field(default=False, metadata={"static": True})


def edit(
    function: Callable[[Site], Any],
    heads: Pairs | None = None,
    amount: Any = 1.0,
    *,
    at: Sequence[int] | None = None,
) -> Edit:
    """An edit by a function of yours, as hooks are in other libraries.

    Args:
      function: from a `Site` to new updates of all heads of its layer, shape (h, n, d). A plain
        function is compiled once for each function object; what it needs of arrays travels in a
        `jax.tree_util.Partial`.
      heads: pairs (layer, head); None means all.
      amount: a of u + a (f(u) - u), 1 for the edit, 0 for none: a number, or one for each pair, or if
        `heads` is None an array (l, h), such as a mask.
      at: positions of the tokens whose updates are edited; None means all.
    Returns: `Edit`.
    Raises: ImrError if heads are no pairs of integers, positions no integers, or the amount is of
      another shape.

    >>> edit(lambda site: 2 * site.updates, [(0, 3)]).heads.tolist()
    [[0, 3]]
    """
    function = as_pytree("function", function)
    pairs = None if heads is None else _integers("heads", heads, (2,), "pairs (layer, head)")
    places = None if at is None else _integers("at", at, (), "positions of tokens")
    if getattr(amount, "dtype", None) == np.bool_:
        amount = amount.astype(np.float32)
    amount = as_floats("amount", amount)
    if amount.ndim and (amount.ndim != 2 if pairs is None else amount.shape != (len(pairs),)):
        wanted = "(l, h)" if pairs is None else f"({len(pairs)},)"
        raise ImrError(f"amount must be a number, or have shape {wanted}; found {amount.shape}.")
    return Edit(function=function, heads=pairs, amount=amount, at=places)


def ablate(
    heads: Pairs | None = None, amount: Any = 1.0, *, at: Sequence[int] | None = None
) -> Edit:
    """Takes the updates of heads away; means of them take their place by `patch`.

    Args:
      heads, amount, at: as in `edit`.
    Returns: `Edit`.
    Raises: ImrError as `edit`.

    >>> ablate([(0, 3), (1, 2)]).heads.tolist()
    [[0, 3], [1, 2]]
    """
    return edit(Partial(_nothing), heads, amount, at=at)


def patch(
    updates: Any,
    heads: Pairs | None = None,
    amount: Any = 1.0,
    *,
    at: Sequence[int] | None = None,
) -> Edit:
    """Puts other updates in the place of a head's: those of another run, a mean, or any.

    Args:
      updates: of all heads, as `run(model, tokens).updates` has them, shape (l, h, n, d), with a
        leading axis b if several texts are run; or what broadcasts to that, as one (n, d) or (d,).
      heads, amount, at: as in `edit`.
    Returns: `Edit`. Models with a norm of what heads add (Gemma 2 and 3) refuse it, since theirs are
      recorded behind that norm.
    Raises: ImrError as `edit`, or if updates are no floats, or in `run` if they do not fit.

    >>> patch(np.zeros(12), [(0, 3)]).heads.tolist()
    [[0, 3]]

    Reference: activation patching, Meng et al., arXiv 2202.05262.
    """
    updates = as_floats("updates", updates)
    made = edit(Partial(_patched, updates), heads, amount, at=at)
    return replace(made, per_text=updates.ndim == 5)


def row_term(site: Site) -> Float[Array, "h n d"]:
    """Minus the row term of each head's energy: what the update of a head that descends lies along.

    Args:
      site: as an edit meets it.
    Returns: Directions (h, n, d).

    Reference: `head_gradient`.
    """
    check_kind("site", site, Site)
    return -head_gradient(site.heads, site.inputs, site.seen).rows


def project(
    heads: Pairs | None = None,
    amount: Any = 1.0,
    *,
    off: bool = False,
    along: Callable[[Site], Any] = row_term,
    like: Callable[[Site], Any] | None = None,
    at: Sequence[int] | None = None,
) -> Edit:
    r"""Keeps of each update, token by token, only its part along the row term, or all but that part.

    A token's part is that along its own direction: no token learns of later ones.

    Args:
      heads, amount, at: as in `edit`.
      off: whether the part is taken out, instead of all else.
      along: from a `Site` to other directions, shape (h, n, d).
      like: for nulls, from a `Site` to directions whose cosines c with the updates u those of `along`
        are given: the part is then $c |u| (c \, u / |u| + \sqrt{1 - c^2} \, R / |R|)$, with the part R of
        `along` that is orthogonal to u. `project(off=True, along=other, like=row_term)` takes out as
        much as `project(off=True)`, in another direction.
    Returns: `Edit`.
    Raises: ImrError as `edit`.

    >>> project([(0, 3)], off=True).heads.tolist()
    [[0, 3]]
    """
    check_flags(off=off)
    along = as_pytree("along", along)
    like = None if like is None else as_pytree("like", like)
    return edit(Partial(_kept if not off else _left, along, like), heads, amount, at=at)


def without_part(
    part: Part,
    heads: Pairs | None = None,
    amount: Any = 1.0,
    *,
    at: Sequence[int] | None = None,
) -> Edit:
    r"""Takes a part of value circuits out: the update $P x W_V W_O$ loses $P x$ `read @ write`.

    The attention weights stay; so does $b_V W_O$. It acts on what the heads read, behind the norm.

    Args:
      part: of the circuits of all heads, as `circuit_part(model.heads)` has it.
      heads, amount, at: as in `edit`; amount -1 puts the part in once more.
    Returns: `Edit`.
    Raises: ImrError as `edit`, or in `run` if the part is not of that model.

    >>> part = Part(np.zeros((1, 4, 12, 3)), np.zeros((1, 4, 3, 12)))
    >>> without_part(part, [(0, 3)]).heads.tolist()
    [[0, 3]]
    """
    check_kind("part", part, Part)
    read, write = as_floats("part.read", part.read), as_floats("part.write", part.write)
    if read.ndim != 4 or write.ndim != 4 or read.mT.shape != write.shape:
        raise ImrError(
            "part must have read (l, h, d, s) and write (l, h, s, d); found "
            f"{read.shape} and {write.shape}."
        )
    return edit(Partial(_without, read, write), heads, amount, at=at)


def amounts_of(edit: Edit, l: int, h: int, n: int) -> tuple[Float[Array, "l h"], Any]:
    """The amount of an edit for each head, and which tokens it meets, (n,) or None."""
    amount, pairs, at = edit.amount, edit.heads, edit.at
    if pairs is None:
        if amount.ndim and amount.shape != (l, h):
            raise ImrError(f"amount must have shape ({l}, {h}); found {amount.shape}.")
        amount = jnp.broadcast_to(amount, (l, h)) if amount.ndim else jnp.full((l, h), amount)
    else:
        amount = jnp.zeros((l, h), amount.dtype).at[pairs[:, 0], pairs[:, 1]].set(amount)
    return amount, None if at is None else jnp.zeros(n, bool).at[at].set(True)


def check_edits(edits: Any, l: int, h: int, shape: tuple[int, ...]) -> tuple[Edit, ...]:
    """Edits that a model of l layers of h heads, and tokens of that shape, can take."""
    if isinstance(edits, Edit) or not isinstance(edits, Sequence):
        edits = (edits,)
    for number, each in enumerate(edits):
        check_kind(f"edits[{number}]", each, Edit)
        pairs, at = each.heads, each.at
        if pairs is not None and is_concrete(pairs):
            _check_below(f"heads of edits[{number}]", np.asarray(pairs), np.array([l, h]))
        if at is not None and is_concrete(at):
            _check_below(f"at of edits[{number}]", np.asarray(at), np.array(shape[-1:]))
        texts = jax.tree.leaves(each.function)[0].shape[:1] if each.per_text else shape[:-1]
        if texts != shape[:-1]:
            raise ImrError(
                f"edits[{number}] has updates of {texts[0]} texts; tokens has shape {shape}."
            )
    return tuple(edits)


def edited(edits: Sequence[Edit], amounts: Sequence[Any], rows: Sequence[Any], site: Site):
    """The updates of a layer after all edits, one after the other."""
    for each, amount, row in zip(edits, amounts, rows, strict=True):
        updates, other = site.updates, jnp.asarray(each.function(site))
        if other.shape != updates.shape:
            raise ImrError(f"an edit must give updates {updates.shape}; found {other.shape}.")
        amount = amount[:, None, None].astype(updates.dtype)
        if row is not None:
            amount = jnp.where(row[None, :, None], amount, 0)
        # Not u + a (f - u), by which an ablated update would be a rounding, not 0.
        site = site._replace(updates=(1 - amount) * updates + amount * other)
    return site.updates


def _nothing(site):
    return jnp.zeros_like(site.updates)


def _patched(updates, site):
    if site.heads.output_norm is not None:
        raise ImrError(
            "patch is not for models with a norm of what heads add, whose updates are recorded "
            "behind it. Give edit a function from a Site to updates before it."
        )
    shape = site.updates.shape
    own = jnp.asarray(updates[site.layer] if updates.ndim == 4 else updates)
    try:
        return jnp.broadcast_to(own.astype(site.updates.dtype), shape)
    except ValueError:
        raise ImrError(
            f"updates must have shape (l, h, n, d), with {shape} in each layer; found {updates.shape}."
        ) from None


def _without(read, write, site):
    h, _, d = site.updates.shape
    if read.shape[1:3] != (h, d):
        raise ImrError(f"part must have {h} heads of {d} features; found {read.shape[1:3]}.")
    read, write = (x[site.layer].astype(site.updates.dtype) for x in (read, write))
    moved = matmul(site.attention, matmul(site.inputs[None], read))
    return site.updates - matmul(moved, write)


def _part(along, like, site):
    """The part of updates that lies along directions, turned to the cosines of others."""
    updates = site.updates
    other = _directions(along, site)
    if like is None:
        return _inner(updates, other) * other
    length = jnp.sqrt(jnp.sum(updates**2, axis=-1, keepdims=True))
    own = over(updates, length)
    cosine = _inner(own, _directions(like, site))
    rest = _unit(other - _inner(own, other) * own)
    sine = jnp.sqrt(jnp.maximum(1 - cosine**2, 0))
    return length * cosine * (cosine * own + sine * rest)


def _kept(along, like, site):
    return _part(along, like, site)


def _left(along, like, site):
    return site.updates - _part(along, like, site)


def _directions(function, site):
    found = jnp.asarray(function(site))
    if found.shape != site.updates.shape:
        raise ImrError(f"directions must have shape {site.updates.shape}; found {found.shape}.")
    return _unit(found)


def _inner(a, b):
    return jnp.sum(a * b, axis=-1, keepdims=True)


def _unit(x):
    return over(x, jnp.sqrt(_inner(x, x)))


def _integers(name, values, shape, what):
    """Integers as an int32 array of a shape in which the first axis is free."""
    if isinstance(values, Sequence) and not values:  # no head is one choice of heads
        values = np.zeros((0, *shape), np.int32)
    array = as_numbers(name, values)
    if array.ndim != 1 + len(shape) or array.shape[1:] != shape or array.dtype.kind not in "iu":
        raise ImrError(f"{name} must be {what}; found {array.dtype} of shape {array.shape}.")
    return array.astype(jnp.int32)


def _check_below(name, values, most):
    if values.size and (np.any(values < 0) or np.any(values >= most)):
        limit = " and ".join(f"0 to {x - 1}" for x in most)
        raise ImrError(f"{name} must lie in {limit}; found {values.tolist()}.")
