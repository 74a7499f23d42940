r"""Constrained belief updates: what one layer of attention can compute of the belief, and how.

Attention adds up what single tokens say, $v_x = \pi T_x / (\pi T_x w) - \pi$, carried forward by
the chain: $\eta_d = \pi + \sum_{s \le d} v_{x_s} A^{d-s}$. The eigenvalues of A then say which
attention patterns, values and number of heads a trained layer should have.

Rows of $\eta$ are normalised and may leave the simplex. The ansatz is about the sum over tokens,
and silent elsewhere: where $v_x A = 0$, as for `rrxor`, it knows of the last token only; where the
chain is periodic, as for `zero_one_random`, or has several closed classes, as a mixture has, some of
what tokens say never decays and the sum grows.
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
