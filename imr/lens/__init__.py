"""The lens: is a trained transformer performing multinomial regression? Weights as plain arrays."""

from imr.lens.folder import read_model as read_model
from imr.lens.model import Heads as Heads
from imr.lens.model import Mlp as Mlp
from imr.lens.model import Model as Model
from imr.lens.model import Norm as Norm
from imr.lens.model import Record as Record
from imr.lens.model import record as record
from imr.lens.weights import WeightCosines as WeightCosines
from imr.lens.weights import weight_cosines as weight_cosines
