"""imr: transformers as gradient flows of multinomial regression, in JAX.

Pure functions on arrays; shapes are z (n, f), theta (k, f), targets (n,) or (n, k). `imr.processes`
holds hidden Markov processes, `imr.beliefs` and `imr.constrained` what an observer knows of them,
`imr.nn` flax modules of the learned setting, `imr.metrics` the diagnostics, `imr.lab.train`,
`imr.lab.checkpoint` and `imr.lab.folder` what an experiment needs.
"""

from imr import beliefs as beliefs
from imr import constrained as constrained
from imr import parallel as parallel
from imr import processes as processes
from imr import splitting as splitting
from imr._lazy import load_on_use
from imr.attention import attention_weights as attention_weights
from imr.attention import cross_attention as cross_attention
from imr.attention import reverse_attention as reverse_attention
from imr.attention import self_attention as self_attention
from imr.beliefs import bayes_filter as bayes_filter
from imr.beliefs import conditional_entropies as conditional_entropies
from imr.beliefs import mixed_states as mixed_states
from imr.constrained import constrained_beliefs as constrained_beliefs
from imr.errors import DataError as DataError
from imr.errors import FlowError as FlowError
from imr.errors import ImrError as ImrError
from imr.errors import MissingPackageError as MissingPackageError
from imr.errors import RunError as RunError
from imr.flow.depth import DepthIsTime as DepthIsTime
from imr.flow.depth import depth_is_time as depth_is_time
from imr.flow.fields import gradient_field as gradient_field
from imr.flow.fields import joint_field as joint_field
from imr.flow.fields import latent_field as latent_field
from imr.flow.fields import linear_field as linear_field
from imr.flow.fields import linear_path as linear_path
from imr.flow.fields import path_field as path_field
from imr.flow.fields import quadratic_field as quadratic_field
from imr.flow.fields import sphere_field as sphere_field
from imr.flow.reduced import linear_flow as linear_flow
from imr.flow.reduced import quadratic_flow as quadratic_flow
from imr.flow.solve import Flow as Flow
from imr.flow.solve import Result as Result
from imr.flow.solve import solve as solve
from imr.flow.splitting import lie_step as lie_step
from imr.flow.splitting import split_step as split_step
from imr.flow.splitting import strang_step as strang_step
from imr.flow.steady import solve_to_steady_state as solve_to_steady_state
from imr.losses import cross_entropy as cross_entropy
from imr.losses import feature_loss as feature_loss
from imr.losses import latent_cross_entropy as latent_cross_entropy
from imr.models.logits import linear_logits as linear_logits
from imr.models.logits import low_rank_logits as low_rank_logits
from imr.models.logits import polynomial_logits as polynomial_logits
from imr.models.logits import quadratic_logits as quadratic_logits
from imr.processes import Process as Process
from imr.processes import sample as sample
from imr.targets import LowRankTargets as LowRankTargets
from imr.targets import same_class_targets as same_class_targets

__version__ = "0.1.0"

SUBMODULES = ("lab", "lens", "metrics", "nn", "regression")

__getattr__ = load_on_use(__name__, SUBMODULES)


def __dir__() -> list[str]:
    return sorted([*globals(), *SUBMODULES])
