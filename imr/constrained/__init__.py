r"""Constrained belief updates: the part of the belief that one layer of attention can compute.

Attention adds the contributions of single tokens, $v_x = \pi T_x / (\pi T_x w) - \pi$, propagated by
the chain: $\eta_d = \pi + \sum_{s \le d} v_{x_s} A^{d-s}$. The eigenvalues of A predict the attention
patterns, the values and the number of heads of a trained layer.

The entries of $\eta$ sum to one and may be negative. If $v_x A = 0$, as for `rrxor`, $\eta$ depends
on the last token only. If the chain is periodic, as for `zero_one_random`, or has several closed
classes, as a mixture has, some contributions never decay and the sum grows.
"""

from imr.constrained.heads import AdditiveFilter as AdditiveFilter
from imr.constrained.heads import Heads as Heads
from imr.constrained.heads import Values as Values
from imr.constrained.heads import additive_filter as additive_filter
from imr.constrained.heads import apply_heads as apply_heads
from imr.constrained.heads import one_head_attention as one_head_attention
from imr.constrained.heads import predicted_values as predicted_values
from imr.constrained.heads import two_head_attention as two_head_attention
from imr.constrained.spectrum import Spectrum as Spectrum
from imr.constrained.spectrum import head_count as head_count
from imr.constrained.spectrum import spectrum as spectrum
from imr.constrained.updates import constrained_beliefs as constrained_beliefs
from imr.constrained.updates import constrained_level as constrained_level
from imr.constrained.vectors import row_normalised_token_vectors as row_normalised_token_vectors
from imr.constrained.vectors import token_vectors as token_vectors
