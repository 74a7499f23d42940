"""Diagnostics: accuracy, neural collapse, superposition, gradients, clusters, probes.

All refuse shapes, dtypes and labels that do not fit with an `ImrError`.
"""

from imr.metrics.classes import ClassScatter as ClassScatter
from imr.metrics.classes import accuracy as accuracy
from imr.metrics.classes import class_means as class_means
from imr.metrics.classes import class_scatter as class_scatter
from imr.metrics.classes import margins as margins
from imr.metrics.collapse import NeuralCollapse as NeuralCollapse
from imr.metrics.collapse import neural_collapse as neural_collapse
from imr.metrics.directions import cluster_count as cluster_count
from imr.metrics.directions import interference as interference
from imr.metrics.directions import mean_cosine as mean_cosine
from imr.metrics.directions import simplex_alignment as simplex_alignment
from imr.metrics.directions import token_cosines as token_cosines
from imr.metrics.directions import welch_bound as welch_bound
from imr.metrics.fields import antisymmetric_share as antisymmetric_share
from imr.metrics.probes import Probe as Probe
from imr.metrics.probes import encoding as encoding
from imr.metrics.probes import energy_share as energy_share
from imr.metrics.probes import fit_probe as fit_probe
from imr.metrics.probes import lag_gains as lag_gains
from imr.metrics.probes import parity_share as parity_share
from imr.metrics.probes import residual_ratio as residual_ratio
