"""Hidden Markov and generalised processes: by name, from matrices, composed; sampling."""

from imr.processes.compose import conditional_product as conditional_product
from imr.processes.compose import mixture as mixture
from imr.processes.compose import product as product
from imr.processes.compose import with_begin_token as with_begin_token
from imr.processes.compose import with_end_token as with_end_token
from imr.processes.named import coin as coin
from imr.processes.named import days_of_week as days_of_week
from imr.processes.named import even as even
from imr.processes.named import even_ones as even_ones
from imr.processes.named import fanizza as fanizza
from imr.processes.named import golden_mean as golden_mean
from imr.processes.named import leaky_rrxor as leaky_rrxor
from imr.processes.named import matching_parens as matching_parens
from imr.processes.named import mess3 as mess3
from imr.processes.named import mr_name as mr_name
from imr.processes.named import no_consecutive_ones as no_consecutive_ones
from imr.processes.named import post_quantum as post_quantum
from imr.processes.named import rrxor as rrxor
from imr.processes.named import sns as sns
from imr.processes.named import tom_quantum as tom_quantum
from imr.processes.named import z1r as z1r
from imr.processes.named import zero_one_random as zero_one_random
from imr.processes.process import Process as Process
from imr.processes.process import is_unifilar as is_unifilar
from imr.processes.sampling import Sample as Sample
from imr.processes.sampling import sample as sample
