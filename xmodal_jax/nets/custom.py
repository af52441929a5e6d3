"""Encoders of your own: any Flax module, or a pair of pure functions, as an encoder of this library.

An encoder of this library is called ``module(inputs, mask, keys=keys)`` and returns `types.Tokens`. One of your own
may leave out ``mask`` and ``keys``, and may return an array: tokens ``[B, N, width]``, or one vector ``[B, width]`` for
each example.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from xmodal_jax.types import ExampleKeys, Tokens


def as_tokens(outputs: Any, name: str = "an encoder of your own") -> Tokens:
    """The outputs of an encoder as `Tokens`: a vector ``[B, width]`` of each example is one token.

    ``name``: of the encoder, for messages.

    Raises:
      ValueError: an array of another number of axes.
    """
    if isinstance(outputs, Tokens):
        return outputs
    if not hasattr(outputs, "ndim") or outputs.ndim not in (2, 3):
        shape = list(getattr(outputs, "shape", [])) or type(outputs).__name__
        raise ValueError(
            f"{name} returned {shape}; expected a vector of each example [B, width], or tokens [B, N, width] (an array "
            "or xmodal_jax.types.Tokens): pool a feature map [B, H, W, C], or flatten its places with "
            "x.reshape(len(x), -1, x.shape[-1])"
        )
    return Tokens(outputs[:, None] if outputs.ndim == 2 else outputs, None)


def _accepted(function: Callable, **options: Any) -> dict[str, Any]:
    """Those of the ``options`` that a function takes by name."""
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in options.items() if takes_all or name in parameters}


class ModuleEncoder(nn.Module):
    """A Flax module as an encoder; its parameters are under ``module``."""

    module: nn.Module

    @nn.compact
    def __call__(self, inputs, mask=None, *, keys: ExampleKeys | None = None) -> Tokens:
        """The module's output as tokens; it gets ``mask`` and ``keys`` if it has arguments of these names."""
        options = _accepted(type(self.module).__call__, mask=mask, keys=keys)
        return as_tokens(self.module(inputs, **options), f"the encoder {type(self.module).__name__}")


class FunctionEncoder(nn.Module):
    """A pair of pure functions as an encoder; its parameters are under ``functions``."""

    init_function: Callable
    """``init(key, inputs) -> params``, a dict of arrays that may nest."""
    apply_function: Callable
    """``apply(params, inputs)``, with the further arguments ``mask`` and ``keys`` if it has these names."""

    @nn.compact
    def __call__(self, inputs, mask=None, *, keys: ExampleKeys | None = None) -> Tokens:
        """The result of ``apply`` as tokens."""
        init: Callable[[jax.Array], Any] = lambda key: self.init_function(key, inputs)
        params = self.param("functions", init)
        options = _accepted(self.apply_function, mask=mask, keys=keys)
        outputs = self.apply_function(params, inputs, **options)
        return as_tokens(outputs, f"the encoder {getattr(self.apply_function, '__name__', 'apply')}")


def as_encoder(encoder: Any, **shape_info: int) -> nn.Module:
    """An encoder of your own as one of this library.

    ``encoder``: a Flax module, a class of Flax modules, which is called with those of ``shape_info`` (``vocab_size``
    and ``max_length`` of texts) that it has fields for, or a pair of functions ``(init, apply)``.

    Raises:
      TypeError: it is neither, or a class with a field that has no default.

    Example::

        class Sensors(nn.Module):
            @nn.compact
            def __call__(self, inputs: Float[Array, "batch features"]):
                return nn.relu(nn.Dense(64)(inputs))

        make_contrastive(config, ("vector", "text"), vocab_size=100, encoders={"vector": Sensors()})
    """
    if isinstance(encoder, type) and issubclass(encoder, nn.Module):
        fields = _accepted(encoder, **shape_info)
        unset = [
            field.name
            for field in dataclasses.fields(encoder)
            if field.init and field.name not in fields
            and field.default is field.default_factory is dataclasses.MISSING
        ]  # fmt: skip
        if unset:
            raise TypeError(
                f"the field {unset[0]!r} of the module {encoder.__name__} has no default: give it one, such as "
                f"{unset[0]}: int = 64 (only vocab_size and max_length of texts are filled in)"
            )
        encoder = encoder(**fields)
    if isinstance(encoder, nn.Module):
        return ModuleEncoder(encoder)
    if isinstance(encoder, tuple) and len(encoder) == 2 and all(map(callable, encoder)):
        return FunctionEncoder(*encoder)
    raise TypeError(
        "an encoder of your own is a Flax module, a class of Flax modules, or a pair of functions (init, apply); got "
        f"{encoder!r}"
    )


def import_object(spec: str) -> Any:
    """The encoder of your own that ``PACKAGE.MODULE:NAME`` names.

    Raises:
      ValueError: the module cannot be imported, has no such name, or what it names is no encoder (see `as_encoder`).
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise ValueError(
            f"module:{spec} is not understood: write module:PACKAGE.MODULE:NAME, as module:my_package.nets:Net"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"module:{spec}: {module_name} cannot be imported ({error}): is its folder in PYTHONPATH?"
        ) from error
    if not hasattr(module, name):
        raise ValueError(f"module:{spec}: {module_name} has no {name!r}")
    encoder = getattr(module, name)
    try:
        # Values for the fields that `as_encoder` fills in for texts; here they only have to be there.
        as_encoder(encoder, vocab_size=1, max_length=1)
    except TypeError as error:
        raise ValueError(f"module:{spec}: {error}") from error
    return encoder
