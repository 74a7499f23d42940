"""The nets whose heads are free: queries, keys, values and outputs are trained, each by itself."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imr.nn import Classifier, PatchBlock, Transformer


class Circuits(NamedTuple):
    """Weights of all heads: queries, keys and values (l, h, d, r), outputs (l, h, r, d)."""

    query: Float[Array, "l h d r"]
    key: Float[Array, "l h d r"]
    value: Float[Array, "l h d r"]
    output: Float[Array, "l h r d"]


ATTENTION, VALUES = ("query", "key"), ("value", "output")


def attend(heads: Any, tokens: Float[Array, "n m d"]) -> Float[Array, "n m d"]:
    """What heads that see all tokens of an image write for each of them."""
    queries, keys, values = (
        jnp.einsum("nmd,hdr->nhmr", tokens, w[...], precision="highest")
        for w in (heads.query, heads.key, heads.value)
    )
    scores = jnp.einsum("nhqr,nhkr->nhqk", queries, keys, precision="highest")
    weights = jax.nn.softmax(scores * queries.shape[-1] ** -0.5, axis=-1)
    read = jnp.einsum("nhqk,nhkr->nhqr", weights, values, precision="highest")
    return jnp.einsum("nhqr,hrd->nqd", read, heads.output[...], precision="highest")


class FreeBlock(PatchBlock):
    """The block of patches of `experiments.images`, with weights of their own for each circuit.

    There Q = K = V = phi and O = -phi^T; here all four are drawn from N(0, 1/d).
    """

    def __init__(
        self, num_features: int, num_classes: int, *, image_shape: tuple[int, int], grid: int,
        heads: int, rank: int, mlp_width: int, rngs: nnx.Rngs,
    ):  # fmt: skip
        super().__init__(
            num_features, num_classes, image_shape=image_shape, grid=grid, heads=heads, rank=rank,
            mlp_width=mlp_width, rngs=rngs,
        )  # fmt: skip
        shape = heads, num_features // grid**2, rank
        self.phi = None
        self.query, self.key, self.value, output = (
            nnx.Param(shape[1] ** -0.5 * jax.random.normal(rngs.params(), shape)) for _ in range(4)
        )
        self.output = nnx.Param(output[...].mT)

    def _descend(self, t, z):
        return self.pixels(attend(self, self.tokens(z) + self.position[...][None]))  # pyright: ignore[reportOptionalSubscript]


class _Layer(nnx.Module):
    """Norm, attention among all tokens, add; norm, MLP, add."""

    def __init__(self, features: int, heads: int, rank: int, rngs: nnx.Rngs):
        def draw(*shape):
            return nnx.Param(shape[1] ** -0.5 * jax.random.normal(rngs.params(), shape))

        self.query, self.key, self.value = (draw(heads, features, rank) for _ in range(3))
        self.output = nnx.Param(draw(heads, features, rank)[...].mT)
        self.attention_norm = nnx.LayerNorm(features, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(features, rngs=rngs)
        self.widen = nnx.Linear(features, 2 * features, rngs=rngs)
        self.narrow = nnx.Linear(2 * features, features, rngs=rngs)

    def __call__(self, x: Float[Array, "n m d"]) -> Float[Array, "n m d"]:
        x = x + attend(self, self.attention_norm(x))
        return x + self.narrow(jax.nn.relu(self.widen(self.mlp_norm(x))))


class PatchTransformer(nnx.Module):
    """A small vision transformer: patches, positions, two layers, and the mean token is classified."""

    def __init__(
        self, image_shape: tuple[int, int], num_classes: int, *, grid: int = 4, layers: int = 2,
        heads: int = 4, features: int = 32, rank: int = 8, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.image_shape, self.grid = image_shape, grid
        self.embedding = nnx.Linear(image_shape[0] * image_shape[1] // grid**2, features, rngs=rngs)
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (grid**2, features)))
        self.layers = nnx.List(_Layer(features, heads, rank, rngs) for _ in range(layers))
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.read_out = nnx.Linear(features, num_classes, rngs=rngs)

    def __call__(self, images: Float[Array, "n f"]) -> Float[Array, "n k"]:
        (height, width), g = self.image_shape, self.grid
        tokens = images.reshape(len(images), g, height // g, g, width // g)
        tokens = tokens.transpose(0, 1, 3, 2, 4).reshape(len(images), g * g, -1)
        x = self.embedding(tokens) + self.position[...][None]
        for layer in self.layers:
            x = layer(x)
        return self.read_out(self.norm(x).mean(axis=1))


def _holders(net: Any) -> list[Any]:
    """The parts of a net that have heads; a tied block has them once for all its iterations."""
    return [net.blocks[0]] if isinstance(net, Classifier) else list(net.layers)


def circuits(net: Transformer | PatchTransformer | Classifier) -> Circuits:
    """The weights of all heads of a net, layers first."""
    holders = _holders(net)
    stacked = [jnp.stack([getattr(h, name)[...] for h in holders]) for name in Circuits._fields]
    return Circuits(*stacked)


def tie(net: Any, sign: float) -> None:
    """Has every head begin with W_V W_O = sign theta^T, scaled so that it keeps its size."""
    for holder in _holders(net):
        query, key, value, output = (getattr(holder, name)[...] for name in Circuits._fields)

        def size(a, b):
            return jnp.linalg.norm(
                jnp.matmul(a, b, precision="highest"), axis=(1, 2), keepdims=True
            )

        scale = jnp.sqrt(size(value, output) / size(key, query.mT))
        holder.value[...] = scale * key
        holder.output[...] = sign * scale * query.mT


def cosines(found: Circuits) -> Float[Array, "l h"]:
    """Cosine of W_V W_O with theta^T, as `imr.lens.weight_cosines` has it, where it is to be derived."""
    query, key, value, output = found

    def gram(a, b):
        return jnp.einsum("lhdr,lhds->lhrs", a, b, precision="highest")

    def inner(a, b):
        return jnp.sum(a * b, axis=(-1, -2))

    circuit = inner(gram(value, value), gram(output.mT, output.mT))
    theta = inner(gram(key, key), gram(query, query))
    return inner(gram(value, key), gram(output.mT, query)) * jax.lax.rsqrt(circuit * theta)
