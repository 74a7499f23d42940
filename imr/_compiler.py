"""The option of XLA without which some versions compute wrong numbers on CPUs."""

import functools
import os
import re
import warnings

import jax
from jax._src import compiler
from jax._src.xla_bridge import backends_are_initialized
from jaxlib.version import __version__ as jaxlib_version

OPTION = "xla_cpu_experimental_ynn_fusion_type"
FLAG, CHOICE = f"--{OPTION}", "individual_dot"


def version() -> tuple[int, ...]:
    """The version of jaxlib, as numbers."""
    return tuple(map(int, re.findall(r"\d+", jaxlib_version)[:3]))


def keep_products_apart() -> None:
    """Lets XLA's YNN library have single matrix products only; no reductions joined to them.

    From jaxlib 0.10.2 on, a product with a constant of equal entries (ones in a mask, zeros at a
    start, a theta closed over) that is followed by a reduction is compiled to one such fusion on
    CPUs, whose result is garbage from about 500 rows on, in every dtype. 0.10.2 is wrong for some
    products of arguments too, and crashes at rank 7. `jax.lax.optimization_barrier` around the
    operands or the product does not keep 0.10.2 and 0.11.0 from it, nor can it help the products of
    users and of einsum. Without YNN at all, the flag left empty, everything is right, and the field
    of self-attention takes 1.8 times as long; as here, it takes as long as before.

    XLA reads its flags once, when jax starts its first backend or anything asks for its options, and
    ends the process at a flag that it does not know: versions that were not tried are left alone.
    Where the flags were read before, or are set anew after this, each program has the option from
    jax's own function; no public setting of jax does that. A flag that the user has set stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if not (0, 10, 2) <= version() < (0, 13):
        return
    flag = f"{FLAG}={CHOICE}"
    users = re.findall(rf"{FLAG}=(\S*)", flags)
    if users and users[-1] != CHOICE:
        _check_choice(users[-1])
        return
    # Also if the flag is there, as in processes that this one starts: it may be set anew after this.
    compiler.get_compile_options = _with_the_option(compiler.get_compile_options)
    if users:
        return
    if not backends_are_initialized():
        if flags.lstrip()[:1] in ("", "-"):  # anything else is the name of a file of flags
            os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
    elif jax.default_backend() == "cpu":
        warnings.warn(
            f"jaxlib {jaxlib_version} computes wrong numbers on CPUs for some products with a "
            "constant, and imr was imported after jax had started. What is compiled from here on is "
            "right; programs that were compiled before may be wrong: import imr before anything is "
            f"computed, or set XLA_FLAGS={flag} in the environment",
            RuntimeWarning,
            stacklevel=3,
        )


def _check_choice(users: str) -> None:
    """Warns of fusions that the user has chosen and that are wrong."""
    if users.strip("'\"").lower().removeprefix("library_fusion_type_") not in ("", CHOICE):
        warnings.warn(
            f"XLA_FLAGS has {FLAG}={users}, with which jaxlib {jaxlib_version} computes wrong numbers "
            f"on CPUs for some products with a constant. Leave it out, or set it to {CHOICE}",
            RuntimeWarning,
            stacklevel=4,
        )


def _with_the_option(get_compile_options):
    """jax's function from which every program has its options, with ours for programs on CPUs."""

    @functools.wraps(get_compile_options)
    def get(*args, env_options_overrides=None, backend=None, **kwargs):
        if backend is not None and backend.platform == "cpu":
            users = env_options_overrides or {}
            env_options_overrides = {OPTION: f"LIBRARY_FUSION_TYPE_{CHOICE.upper()}", **users}
        return get_compile_options(
            *args, env_options_overrides=env_options_overrides, backend=backend, **kwargs
        )

    return get
