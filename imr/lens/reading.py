"""Heads from checkpoints of any architecture, a layer at a time, by a table of names."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np

from imr._checks import check_choice
from imr._files import expanded
from imr.errors import DataError
from imr.lens._config import Config
from imr.lens._rotary import rotary_frequencies
from imr.lens._tensors import Tensors
from imr.lens.heads import Heads, Norm
from imr.lens.names import FAMILIES, HeadNames


def read_heads(
    folder: str | os.PathLike[str],
    *,
    part: str | None = None,
    names: Mapping[str, HeadNames] | None = None,
    prefix: str | None = None,
) -> "HeadLayers":
    """The attention heads of a checkpoint in Hugging Face's folder format, without a forward pass.

    A layer is read when it is asked for, and widened to float32: `for heads in read_heads(folder)` takes
    the memory of one. Nothing is ever unpickled.

    Args:
      folder: with `config.json` and `model.safetensors`, or its shards beside
        `model.safetensors.index.json`.
      part: of the model, such as "decoder" or "cross"; None means all, one after another.
      names: tables of an architecture that is not in `FAMILIES`, by part.
      prefix: what stands before all names of tensors; None means whatever does, such as "model.".
    Returns: `HeadLayers`, a sequence of `Heads`.
    Raises:
      DataError: if it is no such folder, the architecture or one of its options is not known, a
        tensor is missing, misshapen, quantised or not finite, or a file is damaged.
      ImrError: if `part` is none of the model's.
      MissingPackageError: without safetensors; the extra `lens` has it.
    """
    folder = expanded(folder)
    config = Config(folder)
    if names is None:
        hint = " Give names=, a table of names: twenty lines, shown in the README of imr.lens."
        names = FAMILIES[config.choice("model_type", "model_type", FAMILIES, hint=hint)]
    if part is not None:
        check_choice("part", part, tuple(names))
        names = {part: names[part]}
    tensors = Tensors(folder)
    stacks = {name: Stack(config, tensors, table, prefix) for name, table in names.items()}
    return HeadLayers(stacks)


class HeadLayers(Sequence[Heads]):
    """The layers of a checkpoint, each read when it is asked for.

    Args:
      stacks: what reads the layers of each part.
    """

    def __init__(self, stacks: Mapping[str, "Stack"]):
        self._places = [(stack, i) for stack in stacks.values() for i in range(stack.count)]
        self.names = [f"{part}.{i}" for part, stack in stacks.items() for i in range(stack.count)]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Heads: ...
    @overload
    def __getitem__(self, index: slice) -> list[Heads]: ...
    def __getitem__(self, index: int | slice) -> Heads | list[Heads]:
        if isinstance(index, slice):
            return [stack.layer(i) for stack, i in self._places[index]]
        stack, i = self._places[index]
        return stack.layer(i)


class Stack:
    """One part of a checkpoint."""

    def __init__(self, config: Config, tensors: Tensors, names: HeadNames, prefix: str | None):
        if names.config:
            config = config.inside(config.options.get(names.config), names.config)
        options = {**names.defaults, **config.options}  # null in config.json means none at all
        options = {name: value for name, value in options.items() if value is not None}
        self.config = config = config.inside(options, "options")
        self.tensors, self.names = tensors, names
        config.demand(**names.demands)
        self.count = config.size(names.count)
        self.width, self.heads = config.sizes(names.width, names.heads)
        self.groups = config.size(names.groups, self.heads) if names.groups else self.heads
        if names.size and names.size in config.options:
            self.size = config.size(names.size)
        else:
            self.size = self.width // config.heads(names.heads, self.width)
        if self.heads % self.groups:
            raise DataError(
                f"{config.path} has {self.groups} key heads, which do not divide {self.heads} heads."
            )
        at = names.layer.format(0) + (names.packed or names.query) + ".weight"
        self.prefix = tensors.prefix_of(at, prefix)
        start = names.layer.split("{}")[0]
        tensors.check_layers(start, self.count, self.prefix, exact=True)

    def layer(self, i: int) -> Heads:
        """Reads a layer."""
        names, local = self.names, self._is_local(i)
        h, g, r, d = self.heads, self.groups, self.size, self.width
        at = names.layer.format(i)
        if names.packed:
            three = self._packed(at + names.packed)
        else:
            three = [
                self._projection(at + name, heads)
                for name, heads in ((names.query, h), (names.key, g), (names.value, g))
            ]
        (query, query_bias), (key, key_bias), (value, value_bias) = three
        output, output_bias = self._linear(at + names.output, h * r, d)
        if names.layer_scale:
            scale = self.tensors(at + names.layer_scale, d, prefix=self.prefix)
            output = output * scale
            output_bias = None if output_bias is None else output_bias * scale
        window = self._window() if local else None
        return Heads(
            query=query,
            key=key,
            value=value,
            output=output.reshape(h, r, d),
            query_bias=query_bias,
            key_bias=key_bias,
            value_bias=value_bias,
            output_bias=output_bias,
            query_norm=self._head_norm(at, names.query_norm, h),
            key_norm=self._head_norm(at, names.key_norm, g),
            frequencies=rotary_frequencies(self.config, names, local, r),
            norm=self._input_norm(i),
            source_norm=self.norm(names.source_norm) if names.source_norm else None,
            output_norm=self._scale(at + names.output_norm, d) if names.output_norm else None,
            scale=self.config.number(names.scale, 10**9, r) ** -0.5 if names.scaled else 1.0,
            cap=self.config.number(names.cap, 10**9) if names.cap in self.config.options else None,
            rms=names.rms,
            norm_first=names.norm_first,
            joint_norm=names.joint_norm,
            epsilon=self.config.epsilon(*names.epsilon),
            causal=names.causal,
            reach=None if window is None else window - 1 if names.causal else window // 2,
            cross=names.cross,
        )

    def _linear(self, name: str, into: int, out: int, note: str = "") -> tuple[Any, Any]:
        """Weight (into, out) and bias (out,)."""
        shape = (into, out) if self.names.transposed else (out, into)
        weight = self.tensors(f"{name}.weight", *shape, prefix=self.prefix, note=note)
        biased = self.names.biased or self._has(f"{name}.bias")
        bias = self.tensors(f"{name}.bias", out, prefix=self.prefix) if biased else None
        return weight if self.names.transposed else weight.T, bias

    def _has(self, name: str) -> bool:
        return self.tensors.has(self.prefix + name)

    def _projection(self, name: str, heads: int) -> tuple[Any, Any]:
        """Weight (heads, d, r) and bias (heads, r)."""
        note = f", {heads} heads of {self.size} features, as config.json says"
        weight, bias = self._linear(name, self.width, heads * self.size, note)
        weight = np.moveaxis(weight.reshape(self.width, heads, self.size), 1, 0)
        return weight, None if bias is None else bias.reshape(heads, self.size)

    def _packed(self, name: str) -> list[tuple[Any, Any]]:
        """The same for queries, keys and values in one tensor."""
        h, r, d = self.heads, self.size, self.width
        note = f", three times {h} heads of {r} features, as config.json says"
        weight, bias = self._linear(name, d, 3 * h * r, note)
        axes, three = ((h, 3, r), 1) if self.names.packed_by_head else ((3, h, r), 0)
        weights = np.moveaxis(weight.reshape(d, *axes), 1 + three, 0)
        biases = 3 * [None] if bias is None else np.moveaxis(bias.reshape(axes), three, 0)
        return [(np.moveaxis(w, 1, 0), b) for w, b in zip(weights, biases, strict=True)]

    def _scale(self, name: str, *shape: int) -> Any:
        """The scale of a norm; the oldest checkpoints keep TensorFlow's names."""
        old = self._has(f"{name}.gamma")
        scale = self.tensors(f"{name}.{'gamma' if old else 'weight'}", *shape, prefix=self.prefix)
        return 1 + scale if self.names.one_plus else scale

    def norm(self, name: str) -> Norm:
        """A norm of the stream, by its name behind the prefix."""
        bias: Any = np.zeros(self.width, np.float32)
        for part in ("bias", "beta"):
            if self._has(f"{name}.{part}"):
                bias = self.tensors(f"{name}.{part}", self.width, prefix=self.prefix)
        return Norm(self._scale(name, self.width), bias)

    def _input_norm(self, i: int) -> Norm | None:
        """The norm that layer i reads through."""
        names = self.names
        if i == 0 and names.first_norm is not None:
            if not names.first_norm:
                return None
            scale = (self.prefix + f"{names.first_norm}.{part}" for part in ("weight", "gamma"))
            shape = next(filter(None, map(self.tensors.shape, scale)), None)
            # Of another width: a projection lies between.
            return self.norm(names.first_norm) if shape in (None, (self.width,)) else None
        before = i if names.norm_first else max(i - 1, 0)
        return self.norm(names.layer.format(before) + names.norm) if names.norm else None

    def _head_norm(self, at: str, name: str, heads: int) -> Any:
        """The scales of a norm of queries or keys, shape (heads, r)."""
        if not name:
            return None
        if self.names.joint_norm:
            return self._scale(at + name, heads * self.size).reshape(heads, self.size)
        return np.broadcast_to(self._scale(at + name, self.size), (heads, self.size))

    def _window(self) -> int | None:
        """How many tokens layers with a window see."""
        options, name = self.config.options, self.names.window
        if name not in options or options.get("use_sliding_window") is False:
            return None
        return self.config.size(name)

    def _is_local(self, i: int) -> bool:
        """Whether layer i has a window, and the rotary positions that go with it."""
        options, names = self.config.options, self.names
        if not names.window:
            return False
        if "layer_types" in options:
            types, known = options["layer_types"], ("full_attention", "sliding_attention")
            if not (isinstance(types, list) and len(types) == self.count):
                raise DataError(f"{self.config.path} must have layer_types of {self.count} layers.")
            kind = self.config.inside({"kind": types[i]}, "layer_types")
            return kind.choice("kind", f"type of layer {i}", known) == known[1]
        if names.full is None:
            return i >= (
                self.config.size("max_window_layers", 1) if "use_sliding_window" in options else 0
            )
        option, default, remainder = names.full
        return i % self.config.size(option, default) != remainder % self.config.size(
            option, default
        )
