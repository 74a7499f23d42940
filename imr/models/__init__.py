"""Multinomial models: callables from features (n, f) to logits, pytrees of their parameters."""

from imr.models.latent import Latent as Latent
from imr.models.linear import Linear as Linear
from imr.models.model import Model as Model
from imr.models.model import RowModel as RowModel
from imr.models.model import SpanModel as SpanModel
from imr.models.model import Terms as Terms
from imr.models.polynomial import Polynomial as Polynomial
from imr.models.quadratic import Quadratic as Quadratic
