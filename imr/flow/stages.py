"""Tsitouras' method of order 5 with each stage an array of its own, for states that fill a cache."""

from typing import Any

import diffrax as dfx
import jax

_TABLEAU: Any = dfx.Tsit5.tableau
# Entries of a state from which a longer program pays: of 100,000 it saves nothing on a CPU, of 6 million
# half of the time.
LARGE = 2**20


class UnrolledTsit5(dfx.AbstractAdaptiveSolver):
    """`diffrax.Tsit5`, whose loop over stages is written out.

    diffrax keeps the stages in one array of seven states, through all of which each stage passes. Written
    out, a stage reads those that there are, in one pass with its field. The program is longer and takes
    longer to compile. Steps, errors and results are those of Tsit5 up to rounding.

    It is for one `diffrax.ODETerm`, for controllers that make no jumps, and gives no dense output of order
    5.
    """

    term_structure = dfx.AbstractTerm
    interpolation_cls = dfx.LocalLinearInterpolation

    def order(self, terms) -> int:
        """The same whatever the terms."""
        del terms
        return 5

    def init(self, terms, t0, t1, y0, args) -> Any:
        """The slope at the start; each step hands on that of its end."""
        del t1
        return terms.vf(t0, y0, args)

    def func(self, terms, t0, y0, args) -> Any:
        """The field."""
        return terms.vf(t0, y0, args)

    def step(self, terms, t0: Any, t1: Any, y0, args, solver_state, made_jump):
        """One step from t0 to t1, and its error by the embedded method of order 4."""
        del made_jump
        size, slopes = terms.contr(t0, t1), [solver_state]

        def move(weights):
            def moved(*parts):
                return size * sum(float(w) * x for w, x in zip(weights, parts, strict=True) if w)

            return jax.tree.map(moved, *slopes)

        y1 = y0
        for c, weights in zip(_TABLEAU.c, _TABLEAU.a_lower, strict=True):
            y1 = jax.tree.map(lambda y, change: y + change, y0, move(weights))
            slopes.append(terms.vf(t0 + float(c) * (t1 - t0), y1, args))
        # The last stage is the end of the step.
        dense = {"y0": y0, "y1": y1}
        return y1, move(_TABLEAU.b_error), dense, slopes[-1], dfx.RESULTS.successful
