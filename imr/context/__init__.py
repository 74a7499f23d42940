"""In-context learning as functional gradient descent: the label term from labelled examples.

The cross-entropy of a multinomial model has two gradients. In the features it is attention over
classes; in function space it is attention over labelled examples, which gives the unlabelled tokens
their label term.
"""

from imr.context.dynamics import AttentionDynamics as AttentionDynamics
from imr.context.dynamics import attention_dynamics as attention_dynamics
from imr.context.fields import ContextField as ContextField
from imr.context.fields import context_field as context_field
from imr.context.kernels import DenseKernel as DenseKernel
from imr.context.kernels import ExponentialKernel as ExponentialKernel
from imr.context.kernels import FactorKernel as FactorKernel
from imr.context.kernels import Kernel as Kernel
from imr.context.kernels import as_kernel as as_kernel
from imr.context.kernels import diffusion_kernel as diffusion_kernel
from imr.context.kernels import exponential_kernel as exponential_kernel
from imr.context.kernels import linear_kernel as linear_kernel
from imr.context.kernels import normalised_kernel as normalised_kernel
from imr.context.linear import LinearAttention as LinearAttention
from imr.context.linear import curvature_filter as curvature_filter
from imr.context.linear import gradient_step_weights as gradient_step_weights
from imr.context.linear import linear_self_attention as linear_self_attention
from imr.context.regression import KernelRegression as KernelRegression
from imr.context.regression import kernel_regression as kernel_regression
from imr.context.squared import squared_flow as squared_flow
