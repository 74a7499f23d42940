"""What a checkpoint says of the net in it: a description in JSON, and back to what builds the net.

A net is described by the call that makes it, a `functools.partial` of a public class of `imr.nn`; a
process by a `functools.partial` of a function of `imr.processes`. Defaults are written too, so that an
old checkpoint keeps its meaning if a default changes.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from reprlib import repr as shortened
from typing import Any

from imr.errors import RunError
from imr.lab.as_json import json_ready

# Whose public names may stand in a description; nothing else is ever looked up or called.
MODULES = ("imr.nn", "imr.processes")


def describe(call: Callable[..., Any]) -> dict[str, Any]:
    """A call of a public name of `imr.nn` or `imr.processes` as JSON has it.

    Args:
      call: the class or function, or a `functools.partial` of it, as may be its arguments.
    Raises: RunError if it is no public name of these modules.

    >>> from imr.processes import mess3
    >>> describe(partial(mess3, 0.15, a=0.6))
    {'module': 'imr.processes', 'name': 'mess3', 'arguments': {'x': 0.15, 'a': 0.6}}
    """
    function: Any = call.func if isinstance(call, partial) else call
    name = getattr(function, "__name__", "")
    modules = (importlib.import_module(module) for module in MODULES)
    home = next((m.__name__ for m in modules if getattr(m, name, None) is function), None)
    if home is None:
        raise RunError(
            f"call must be a public name of {' or '.join(MODULES)}; found {function!r}. Describe "
            "another net by a dictionary of your own."
        )
    arguments = {}
    if isinstance(call, partial):
        # The metaclass of flax's modules hides the arguments of __init__.
        made = partial(function.__init__, None) if isinstance(function, type) else function
        bound = inspect.signature(made).bind_partial(*call.args, **call.keywords)
        bound.apply_defaults()
        arguments = bound.arguments
        for each in bound.signature.parameters.values():
            if each.kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= arguments.pop(each.name, {})
    values = {k: describe(v) if callable(v) else json_ready(k, v) for k, v in arguments.items()}
    return {"module": home, "name": name, "arguments": values}


def build(description: Mapping[str, Any]) -> Callable[..., Any]:
    """What makes the net or process that a description of `describe` means.

    Returns: A `functools.partial`; call it with `rngs=` for a net, without arguments for a process.
    Raises: RunError if it is no such description.

    >>> from imr.processes import mess3
    >>> build(describe(partial(mess3, 0.15, a=0.6)))().num_tokens
    3
    """
    try:
        module, name, arguments = (description[k] for k in ("module", "name", "arguments"))
        known = module in MODULES and not name.startswith("_")
        function = getattr(importlib.import_module(module), name) if known else None
        if not callable(function) or not getattr(function, "__module__", "").startswith(module):
            raise AttributeError(name)
        return partial(function, **{k: _built(v) for k, v in arguments.items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"description must name a class of imr.nn or a function of imr.processes and its "
            f"arguments; found {shortened(description)}."
        ) from error


def _built(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == {"module", "name", "arguments"}:
        built = build(value)
        return built if built.keywords else built.func  # pyright: ignore[reportFunctionMemberAccess]
    return tuple(value) if isinstance(value, list) else value
