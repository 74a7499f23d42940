r"""Bayesian beliefs about the hidden state: filter, smoother, paths, entropies, mixed states.

Alignment: the belief at position d is the one AFTER token d, and the prediction made from it is for
token d + 1. Distributions are row vectors; $T_x$, A, $\pi$ and w are those of `imr.Process`.
"""

from imr.beliefs.entropies import EntropyRate as EntropyRate
from imr.beliefs.entropies import block_entropies as block_entropies
from imr.beliefs.entropies import conditional_entropies as conditional_entropies
from imr.beliefs.entropies import entropy_rate as entropy_rate
from imr.beliefs.entropies import excess_entropy as excess_entropy
from imr.beliefs.filter import Filtered as Filtered
from imr.beliefs.filter import bayes_filter as bayes_filter
from imr.beliefs.filter import is_forbidden as is_forbidden
from imr.beliefs.filter import next_token_probabilities as next_token_probabilities
from imr.beliefs.fit import Fit as Fit
from imr.beliefs.fit import fit_process as fit_process
from imr.beliefs.smoother import smooth as smooth
from imr.beliefs.tables import Fixed as Fixed
from imr.beliefs.ties import Tied as Tied
from imr.beliefs.viterbi import ViterbiPath as ViterbiPath
from imr.beliefs.viterbi import viterbi as viterbi
from imr.beliefs.words import MOST_WORDS as MOST_WORDS
from imr.beliefs.words import Level as Level
from imr.beliefs.words import MixedStates as MixedStates
from imr.beliefs.words import Prefixes as Prefixes
from imr.beliefs.words import all_words as all_words
from imr.beliefs.words import belief_level as belief_level
from imr.beliefs.words import count_mixed_states as count_mixed_states
from imr.beliefs.words import mixed_states as mixed_states
from imr.beliefs.words import unique_prefixes as unique_prefixes
