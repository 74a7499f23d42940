"""imr: transformers as gradient flows of multinomial regression, in JAX.

A model is a callable from features z (n, f) to logits; its loss, the flow of the features under it
and the attention in that flow follow from it. `imr.processes` holds hidden Markov processes,
`imr.beliefs` and `imr.constrained` what an observer knows of them, `imr.nn` flax modules of the
learned setting, `imr.metrics` diagnostics, `imr.lens` measures of trained transformers, `imr.lab`
what an experiment needs.
"""

from types import ModuleType
from typing import Any

from imr import splitting as splitting
from imr._compiler import keep_products_apart
from imr._lazy import load_on_use
from imr.attention import attention_weights as attention_weights
from imr.attention import cross_attention as cross_attention
from imr.attention import reverse_attention as reverse_attention
from imr.attention import self_attention as self_attention
from imr.beliefs import bayes_filter as bayes_filter
from imr.beliefs import conditional_entropies as conditional_entropies
from imr.beliefs import fit_process as fit_process
from imr.beliefs import mixed_states as mixed_states
from imr.constrained import constrained_beliefs as constrained_beliefs
from imr.errors import DataError as DataError
from imr.errors import FlowError as FlowError
from imr.errors import ImrError as ImrError
from imr.errors import MissingPackageError as MissingPackageError
from imr.errors import RunError as RunError
from imr.flow.depth import DepthIsTime as DepthIsTime
from imr.flow.depth import depth_is_time as depth_is_time
from imr.flow.fields import closed_field as closed_field
from imr.flow.fields import gradient_field as gradient_field
from imr.flow.fields import sphere_field as sphere_field
from imr.flow.fields import split_fields as split_fields
from imr.flow.integrate import Result as Result
from imr.flow.moving import joint_field as joint_field
from imr.flow.moving import linear_path as linear_path
from imr.flow.moving import path_field as path_field
from imr.flow.reduced import solve_reduced as solve_reduced
from imr.flow.solve import Flow as Flow
from imr.flow.solve import solve as solve
from imr.flow.splitting import lie_step as lie_step
from imr.flow.splitting import split_step as split_step
from imr.flow.splitting import strang_step as strang_step
from imr.flow.steady import solve_to_steady_state as solve_to_steady_state
from imr.losses import cross_entropy as cross_entropy
from imr.losses import feature_loss as feature_loss
from imr.models import Latent as Latent
from imr.models import Linear as Linear
from imr.models import Model as Model
from imr.models import Polynomial as Polynomial
from imr.models import Quadratic as Quadratic
from imr.processes import Process as Process
from imr.processes import sample as sample
from imr.targets import LowRankTargets as LowRankTargets
from imr.targets import Targets as Targets
from imr.targets import as_targets as as_targets
from imr.targets import pointers as pointers
from imr.targets import same_class_targets as same_class_targets

__version__ = "0.2.0"

keep_products_apart()  # no import above computes anything

SUBMODULES = (
    "attention", "beliefs", "constrained", "context", "flow", "lab", "lens", "metrics", "models", "nn",
    "parallel", "processes", "regression", "splitting", "targets",
)  # fmt: skip

# What a reader of an older text may look for.
_NEW_NAMES = {
    "linear_logits": "Linear(theta, bias)(z)",
    "polynomial_logits": "Polynomial(theta, degree)(z)",
    "quadratic_logits": "Quadratic.full(theta)(z)",
    "low_rank_logits": "Quadratic(q, k)(z)",
    "RowModel": "models.RowModel",
    "SpanModel": "models.SpanModel",
    "latent_cross_entropy": "cross_entropy(Latent(theta, group)(z), labels)",
    "linear_field": "closed_field(feature_loss(Linear(theta), targets))",
    "latent_field": "closed_field(feature_loss(Latent(theta, group), labels))",
    "quadratic_field": "closed_field(feature_loss(Quadratic(q, k), targets))",
    "linear_flow": "solve_reduced(feature_loss(Linear(theta), targets), z0, t1=t1)",
    "quadratic_flow": "solve_reduced(feature_loss(Quadratic(q, k), targets), z0, t1=t1)",
    "cost": "parallel.cost",
    "data": "lab.data",
    "train": "lab.train",
    "run": "lab.folder",
    "console": "lab.console",
    "checkpoint": "lab.checkpoint",
    "plotting": "lab.plotting",
    "logits": "models",
    "dynamics": "flow",
    "reduced": "flow",
    "steady": "flow",
    "depth": "flow",
}

_submodule = load_on_use(__name__, SUBMODULES)


def __getattr__(name: str) -> ModuleType | Any:
    if name in _NEW_NAMES:
        raise AttributeError(f"imr.{name} is now imr.{_NEW_NAMES[name]}")
    return _submodule(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *SUBMODULES})
