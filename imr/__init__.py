"""imr: transformers as gradient flows of multinomial regression, in JAX.

Pure functions on arrays; shapes are z (n, f), theta (k, f), targets (n,) or (n, k). `imr.nn` holds
flax modules of the learned setting, `imr.train`, `imr.checkpoint` and `imr.run` what an experiment
needs.
"""

from imr import nn as nn
from imr._checks import DataError as DataError
from imr._checks import ImrError as ImrError
from imr._checks import MissingPackageError as MissingPackageError
from imr._checks import RunError as RunError
from imr.attention import cross_attention as cross_attention
from imr.dynamics import gradient_field as gradient_field
from imr.logits import linear_logits as linear_logits
from imr.losses import cross_entropy as cross_entropy
from imr.losses import feature_loss as feature_loss
from imr.losses import latent_cross_entropy as latent_cross_entropy
from imr.splitting import lie_step as lie_step
from imr.splitting import strang_step as strang_step

__version__ = "0.1.0"
