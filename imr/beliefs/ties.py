r"""Tied entries: groups of a table's entries that share one value, and their share of the counts.

Maximise $\sum_g N_g \log \theta_g$, the counts of each group, over rows that sum to what their free
entries may. Rows that have a group in common form a class; in each of its n rows the group must stand
equally often, $m_g$ times. Then the maximum is closed: with R the free sum of a row, $\rho_i$ what
groups of row i alone share, N all counts of the class and $N_i$ those of row i's own groups,

$$\theta_g = R \, \frac{N_g}{n m_g} \Big/ \frac{N}{n}, \qquad
  \rho_i = R \, \frac{\sum_i N_i}{n} \Big/ \frac{N}{n}, \qquad
  \theta_g = \rho_i \, \frac{N_g}{m_g N_i} \text{ for groups of row i alone.}$$

These are shares of the row's counts, as without ties, after the counts are averaged.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from imr.errors import ImrError


class Tied(NamedTuple):
    """Entries that share one value: integers of the shape of the entries, or None for no ties.

    Equal integers from 0 on are one group; -1 says that an entry has a value of its own. A group that
    stands in several rows must stand in each equally often, as must all others of these rows that
    they share: only then is the step of EM closed.

    Attributes:
      initial: of the start distribution, shape (s,).
      transitions: of T, shape (k, s, s); with `emission="state"` of A, shape (s, s). A row is what
        leaves a state.
      emissions: of B, shape (s, k), with `emission="state"`.
    """

    initial: Any = None
    transitions: Any = None
    emissions: Any = None


class Ties(NamedTuple):
    """The groups of one table.

    Attributes:
      group: of each entry, as an index of the flat table.
      size: entries of its group.
      shared: whether its group stands in several rows.
      row_class: of each row, as the index of a row.
    """

    group: Int[Array, "r m"]
    size: Int[Array, "r m"]
    shared: Bool[Array, "r m"]
    row_class: Int[Array, "r"]


def averaged(counts: Array, table: Array, ties: Ties | None) -> Array:
    """Counts whose proportions in each row are those of the maximum under the ties."""
    if ties is None:
        return counts
    rows = len(counts)
    counts = group_sums(counts, ties) / ties.size
    own = jnp.where(ties.shared, 0, counts)
    total = jnp.sum(own, axis=1)
    sums = jax.ops.segment_sum(total, ties.row_class, rows)
    number = jax.ops.segment_sum(jnp.ones_like(total), ties.row_class, rows)
    mean = (sums / jnp.where(number > 0, number, 1))[ties.row_class]
    # A row without counts of its own keeps their proportions.
    table = jnp.where(ties.shared, 0, table)
    own = jnp.where((total > 0)[:, None], own, table)
    total = jnp.where(total > 0, total, jnp.sum(table, axis=1))
    scale = mean / jnp.where(total > 0, total, 1)
    return jnp.where(ties.shared, counts, own * scale[:, None])


def group_sums(x: Array, ties: Ties | None) -> Array:
    """At each entry the sum over its group."""
    if ties is None:
        return x
    return jax.ops.segment_sum(x.ravel(), ties.group.ravel(), x.size)[ties.group]


def class_max(x: Array, ties: Ties | None) -> Array:
    """The largest of rows (r, 1) that share a group, at each of them."""
    if ties is None:
        return x
    return jax.ops.segment_max(x[:, 0], ties.row_class, len(x))[ties.row_class][:, None]


def make_ties(name: str, labels: np.ndarray, table: np.ndarray, free: np.ndarray) -> Ties:
    """The groups of a table (r, m) from labels of its shape; all must fit, see `Tied`."""
    rows = len(table)
    groups, index = np.unique(labels[labels >= 0], return_inverse=True)
    # Entries of one group become the first of them; the others stay what they are.
    group = np.arange(table.size).reshape(table.shape)
    members, frees = np.zeros((len(groups), rows), int), np.zeros((len(groups), 2), int)
    at = np.argwhere(labels >= 0)
    np.add.at(members, (index, at[:, 0]), 1)
    np.add.at(frees, (index, free[labels >= 0].astype(int)), 1)
    for g, label in enumerate(groups):
        where = labels == label
        if frees[g].all():
            raise ImrError(
                f"{name}: entries of a group must be all free; of group {label} {frees[g, 0]} are "
                "fixed or zero in start."
            )
        if np.ptp(table[where]) > 1e-5:
            raise ImrError(
                f"{name}: entries of a group must be equal in start; those of group {label} lie in "
                f"{table[where].min():.6g} to {table[where].max():.6g}."
            )
        group[where] = group[where][0]
    row_class = np.arange(rows)
    spread = [g for g in range(len(groups)) if np.count_nonzero(members[g]) > 1 and frees[g, 1]]
    for g in spread:
        joined = np.isin(row_class, row_class[members[g] > 0])
        row_class[joined] = row_class[joined].min()
    rest = np.where(free, table, 0).sum(axis=1)
    for g in spread:
        other = np.flatnonzero(row_class == row_class[np.argmax(members[g] > 0)])
        if np.ptp(members[g, other]):
            low, high = (other[pick(members[g, other])] for pick in (np.argmin, np.argmax))
            raise ImrError(
                f"{name}: rows that share a group must have each shared one equally often, or no step "
                f"of EM is closed; group {groups[g]} stands {members[g, high]} times in row {high} and "
                f"{members[g, low]} in row {low}."
            )
        if np.ptp(rest[other]) > 1e-5:
            raise ImrError(
                f"{name}: rows that share a group must have the same sum of free entries; those of "
                f"group {groups[g]} have {rest[other].min():.6g} to {rest[other].max():.6g}."
            )
    sizes = np.bincount(group.ravel(), minlength=table.size)[group]
    shared = np.isin(labels, groups[spread])
    return Ties(*map(jnp.asarray, (group, sizes, shared, row_class)))
