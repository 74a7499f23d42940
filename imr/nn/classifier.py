"""Blocks, and a read-out with the same theta."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from imr._checks import check_at_least, check_callable, check_count, check_counts, check_flags
from imr._typing import Features
from imr.errors import ImrError
from imr.models import Latent, Linear
from imr.nn.block import Block


class Classifier(nnx.Module):
    r"""Multinomial regression on evolved features: iterate a block, then read out with its theta.

    $$Z_{l+1} = Block(Z_l), \quad Z_0 = X; \qquad N = Z_L \theta^T + b$$

    With `iterations=0` this is multinomial regression. With `prototypes` s > 1 each class c has s
    rows of theta (latent classes), and $N_c = \log \sum_{j \in c} \exp N_j$: the softmax of the
    result is the sum of the softmax over the prototypes of each class.

    Args:
      num_features: f.
      num_classes: k.
      iterations: depth L, blocks applied before the read-out.
      prototypes: s, rows of theta for each class; class c owns rows c s to c s + s - 1.
      block: class of what is iterated, `Block`, `FlowBlock` or `PatchBlock`: any module from (n, f)
        to (n, f) with theta (rows, f) and bias.
      options: of the block, made by block(num_features, rows of theta, rngs=rngs, **options).
      tied: one block iterated (the autonomous flow), or a block for each iteration (theta(t)); the
        read-out then shares the last one's theta.
      rngs: random streams of flax nnx.
    Raises: ImrError if a size is below 1 or `iterations` below 0.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> model = Classifier(num_features=4, num_classes=3, iterations=2, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((5, 4))).shape
    (5, 3)

    Reference: arXiv 2509.04653; latent classes are an extension of imr.
    """

    def __init__(
        self, num_features: int, num_classes: int, *, iterations: int, prototypes: int = 1,
        block: Callable[..., Any] = Block, tied: bool = True, rngs: nnx.Rngs, **options: Any,
    ):  # fmt: skip
        check_counts(num_classes=num_classes, prototypes=prototypes)
        check_count("iterations", iterations, 0)
        check_flags(tied=tied)
        check_callable("block", block)
        self.num_classes, self.iterations, self.tied = num_classes, iterations, tied
        self.blocks = nnx.List(
            block(num_features, num_classes * prototypes, rngs=rngs, **options)
            for _ in range(1 if tied else max(iterations, 1))
        )

    def __call__(self, x: Features) -> Float[Array, "n k"]:
        """Class logits, shape (n, k), after `iterations` blocks from Z_0 = x, shape (n, f)."""
        for l in range(self.iterations):
            x = self.blocks[0 if self.tied else l](x)
        return self.read_out(x)

    def read_out(self, z: Features) -> Float[Array, "n k"]:
        """Class logits of features, shape (n, f), as they stand."""
        last = self.blocks[-1]
        theta, bias = last.theta[...], last.bias[...]
        if len(theta) == self.num_classes:
            return Linear(theta, bias)(z)
        group = np.repeat(np.arange(self.num_classes), len(theta) // self.num_classes)
        return Latent(theta, group, bias, num_classes=self.num_classes)(z)

    def trajectory(self, x: Features, iterations: int | None = None) -> Float[Array, "l n f"]:
        """The features Z_0 ... Z_L, shape (iterations + 1, n, f).

        Args:
          x: features Z_0, shape (n, f).
          iterations: how many blocks, by default `self.iterations`; more if the classifier is tied.
        Raises: ImrError if iterations is negative, or above the depth of an untied classifier.
        """
        count = self.iterations if iterations is None else iterations
        check_at_least("iterations", count, 0)
        if self.tied:
            block = self.blocks[0]
            later = jax.lax.scan(lambda z, _: (z_ := block(z), z_), x, length=count)[1]
            return jax.numpy.concatenate([x[None], later])
        if count > self.iterations:
            raise ImrError(
                f"iterations must be at most {self.iterations}, the depth of this untied "
                f"classifier; found {count}. A tied one iterates its block for as long as asked."
            )
        states = [x]
        for block in list(self.blocks)[:count]:
            states.append(block(states[-1]))
        return jax.numpy.stack(states)
