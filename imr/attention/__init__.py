"""Attention in closed form, and its products in O(n) memory, over devices, or approximately."""

from imr.attention.closed import Normalise as Normalise
from imr.attention.closed import Projection as Projection
from imr.attention.closed import attention_terms as attention_terms
from imr.attention.closed import attention_weights as attention_weights
from imr.attention.closed import cross_attention as cross_attention
from imr.attention.closed import projected_terms as projected_terms
from imr.attention.closed import reverse_attention as reverse_attention
from imr.attention.closed import self_attention as self_attention
from imr.attention.products import attention_log_sums as attention_log_sums
from imr.attention.products import attention_products as attention_products
from imr.attention.products import residual_products as residual_products
from imr.attention.random_features import RandomFeatureProducts as RandomFeatureProducts
from imr.attention.random_features import random_feature_products as random_feature_products
