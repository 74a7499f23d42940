"""flax nnx modules of the learned-theta setting."""

from imr.nn.block import MLP as MLP
from imr.nn.block import Block as Block
from imr.nn.classifier import Classifier as Classifier
from imr.nn.context import ContextBlock as ContextBlock
from imr.nn.edits import ablate_along as ablate_along
from imr.nn.edits import add_along as add_along
from imr.nn.edits import coordinates as coordinates
from imr.nn.edits import replace_along as replace_along
from imr.nn.flow import FlowBlock as FlowBlock
from imr.nn.linear_attention import LinearSelfAttention as LinearSelfAttention
from imr.nn.next_token import exact_kl as exact_kl
from imr.nn.next_token import next_token_loss as next_token_loss
from imr.nn.patches import PatchBlock as PatchBlock
from imr.nn.transformer import Record as Record
from imr.nn.transformer import Transformer as Transformer
