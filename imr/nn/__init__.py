"""flax nnx modules of the learned-theta setting."""

from imr.nn.block import MLP as MLP
from imr.nn.block import Block as Block
from imr.nn.classifier import Classifier as Classifier
from imr.nn.flow import FlowBlock as FlowBlock
from imr.nn.patches import PatchBlock as PatchBlock
