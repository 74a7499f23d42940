"""A block of the quadratic model: self-attention among the patches of an image."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imr._checks import check_axis, check_counts, check_flags, check_rank
from imr._typing import Features
from imr.attention import attention_terms
from imr.errors import ImrError
from imr.nn.block import MLP, LieBlock, draw_theta


class PatchBlock(LieBlock):
    r"""One Lie step of the quadratic model's flow, with the patches of each image as its tokens.

    $$Z' = Z - \tau \, (SA(Z + P, \phi) + SA_{rev}(Z + P, \phi)), \qquad Z^+ = Z' + \tau MLP(Z')$$

    Z (m, d) are the m patches of one image, d pixels each; P (m, d) are learned positions. Images
    stay images, rows of f = m d pixels, before and after. The MLP works on each token by itself.
    The read-out has class weights of its own, theta (k, f), on all pixels.

    Args:
      num_features: f, pixels.
      image_shape: (height, width), their product is f.
      grid: patches along each side; m = grid^2.
      heads: attention heads, whose terms add.
      rank: r of phi (heads, d, r), at most d; the inverse temperature is 1/sqrt(r).
      column_term: whether the step has the column term. Without it the step is that of ordinary
        attention, no gradient step of anything.
      num_classes, attention, mlp_width, tau, signed_step: as in `Block`.
      rngs: random streams of flax nnx; `params` draws phi from N(0, 1/d).
    Raises: ImrError if sizes are below 1, the grid does not divide the image, the rank is above d,
      or tau is not positive.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> block = PatchBlock(16, 2, image_shape=(4, 4), grid=2, rank=2, rngs=nnx.Rngs(0))
    >>> block(jnp.ones((5, 16))).shape
    (5, 16)

    Reference: arXiv 2509.04653, Theorem 2 and its Corollary.
    """

    def __init__(
        self, num_features: int, num_classes: int, *, image_shape: tuple[int, int], grid: int = 4,
        heads: int = 4, rank: int = 8, attention: bool = True, column_term: bool = True,
        mlp_width: int | None = 128, tau: float = 0.25, signed_step: bool = False, rngs: nnx.Rngs,
    ):  # fmt: skip
        super().__init__(num_features, num_classes, attention, tau, signed_step)
        check_counts(grid=grid, heads=heads, rank=rank)
        check_flags(column_term=column_term)
        if not (isinstance(image_shape, tuple | list) and len(image_shape) == 2):
            raise ImrError(f"image_shape must be (height, width); found {image_shape!r}.")
        height, width = image_shape
        check_counts(height=height, width=width)
        if height * width != num_features or height % grid or width % grid:
            raise ImrError(
                f"grid must divide both sides of image_shape, whose product is num_features; found "
                f"grid {grid}, image_shape {tuple(image_shape)}, num_features {num_features}."
            )
        size = num_features // grid**2
        if rank > size:
            raise ImrError(f"rank must be at most the {size} pixels of a patch; found {rank}.")
        self.image_shape, self.grid, self.column_term = tuple(image_shape), grid, column_term
        self.theta = draw_theta(rngs, num_classes, num_features)
        phi = size**-0.5 * jax.random.normal(rngs.params(), (heads, size, rank))
        self.phi = nnx.Param(phi) if attention else None
        self.position = nnx.Param(jnp.zeros((grid**2, size))) if attention else None
        self.mlp = None if mlp_width is None else MLP(size, mlp_width, rngs=rngs)

    def tokens(self, z: Features) -> Float[Array, "n m d"]:
        """The patches of each image, (n, grid^2, pixels of a patch), row by row of the grid."""
        (height, width), g = self.image_shape, self.grid
        check_rank("z", z, 2, "(n, f)")
        check_axis("z", z.shape[1], "image_shape", height * width, "pixels")
        z = z.reshape(len(z), g, height // g, g, width // g)
        return z.transpose(0, 1, 3, 2, 4).reshape(len(z), g * g, -1)

    def pixels(self, tokens: Float[Array, "n m d"]) -> Features:
        """The images of patches: the inverse of `tokens`."""
        (height, width), g = self.image_shape, self.grid
        z = tokens.reshape(len(tokens), g, g, height // g, width // g)
        return z.transpose(0, 1, 3, 2, 4).reshape(len(tokens), -1)

    def _descend(self, t, z):
        def one(image):
            row, column = attention_terms(
                image + position, phi, beta=phi.shape[-1] ** -0.5, columns=self.column_term
            )
            return -row if column is None else -row - column

        phi, position = self.phi[...], self.position[...]  # pyright: ignore[reportOptionalSubscript]
        return self.pixels(jax.vmap(one)(self.tokens(z)))

    def _label_term(self, z):
        tokens = self.tokens(z)
        return self.pixels(self.mlp(tokens.reshape(-1, tokens.shape[2])).reshape(tokens.shape))
