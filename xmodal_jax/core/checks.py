"""Checks of the options of a configuration, and of the shapes of a function's arguments."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def check_at_least(options: Any, least: int, *names: str) -> None:
    """Raises ValueError where one of the named options, such as ``("width", "depth")``, is below ``least``."""
    for name in names:
        if getattr(options, name) < least:
            raise ValueError(
                f"{type(options).__name__}.{name} must be at least {least}, got {getattr(options, name)}"
            )


def check_sizes(options: Any) -> None:
    """Raises ValueError where an integer option is below 1, for a configuration whose integers are all sizes."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    check_at_least(
        options, 1, *(name for name, value in values.items() if type(value) is int)
    )  # a bool is none


def check_rates(options: Any, *names: str) -> None:
    """Raises ValueError where one of the named options, such as a dropout rate, does not lie in [0, 1)."""
    for name in names:
        if not 0.0 <= getattr(options, name) < 1.0:
            raise ValueError(
                f"{type(options).__name__}.{name} must lie in [0, 1), got {getattr(options, name)}"
            )


def check_one_of(options: Any, **allowed: tuple[str, ...]) -> None:
    """Raises ValueError where an option has none of the values allowed for it, such as ``kernel=("imq", "rbf")``."""
    for name, values in allowed.items():
        if getattr(options, name) not in values:
            raise ValueError(
                f"{type(options).__name__}.{name} must be one of {values}, got {getattr(options, name)!r}"
            )


def check_shapes(function: Function) -> Function:
    """Decorates a function: arrays whose shapes do not fit its annotations raise a ValueError that names the argument,
    and so does a value that its annotation, a ``Literal``, does not list.

    The annotations are jaxtyping's, such as ``Float[Array, "batch dim"]`` or the same ``| None``. A name of a dimension
    is one size in all arguments; ``*rows`` stands for any number of dimensions, ``...`` for any that need not be equal.
    Types are not checked, nor arguments without a shape. The shapes are looked at when the function is called or
    traced; a compiled program has no checks.

    Example::

        @check_shapes
        def add(a: Float[Array, "batch dim"], b: Float[Array, "batch dim"]): ...

        add(jnp.ones((8, 2)), jnp.ones((7, 2)))  # add: b must be [batch, dim] with batch=8 (as in a), got [7, 2]
    """
    signature = inspect.signature(function)

    @functools.lru_cache(maxsize=1)
    def annotated() -> tuple[dict[str, list[str]], dict[str, tuple[Any, ...]]]:
        """``(dimensions, choices)``: the dimensions of each argument that is an array, and the values that each
        argument with a ``Literal`` annotation may have. They are read at the first call: annotations are strings."""
        hints = {name: hint for name, hint in typing.get_type_hints(function).items() if name != "return"}
        dimensions = {name: names for name, h in hints.items() if (names := _dimensions(h)) is not None}
        literals = {name: h for name, h in hints.items() if typing.get_origin(h) is typing.Literal}
        return dimensions, {name: typing.get_args(h) for name, h in literals.items()}

    @functools.wraps(function)
    def checked(*args, **kwargs):
        """``function(*args, **kwargs)`` after the check of its arguments."""
        arguments = signature.bind(*args, **kwargs).arguments
        dimensions, choices = annotated()
        for name, values in choices.items():
            if name in arguments and arguments[name] not in values:
                listed = ", ".join(map(repr, values))
                raise ValueError(
                    f"{function.__name__}: {name} must be one of {listed}, got {arguments[name]!r}"
                )
        # For each name of a dimension its size, and the argument that it was first seen in.
        sizes: dict[str, tuple[Any, str]] = {}
        for name, names in dimensions.items():
            if hasattr(arguments.get(name), "shape"):
                _check_shape(function.__name__, name, tuple(arguments[name].shape), names, sizes)
        return function(*args, **kwargs)

    return typing.cast(Function, checked)


def check_dimensions(function: str, **arguments: tuple[Any, str]) -> None:
    """Raises ValueError where arrays do not fit each other, for functions without annotations; see `check_shapes`.

    Each argument is an array and the names of its dimensions; None is not checked::

        check_dimensions("ranks", queries=(queries, "queries dim"), gallery=(gallery, "items dim"))
    """
    sizes: dict[str, tuple[Any, str]] = {}
    for name, (array, dimensions) in arguments.items():
        if array is not None:
            _check_shape(function, name, tuple(array.shape), dimensions.split(), sizes)


def _dimensions(hint: Any) -> list[str] | None:
    """The names of an annotation's dimensions; None if it is not one kind of array (or None)."""
    options = [x for x in typing.get_args(hint) if x is not type(None)] if typing.get_args(hint) else [hint]
    if len(options) != 1 or not hasattr(options[0], "dim_str"):
        return None
    return options[0].dim_str.split()


def _check_shape(
    function: str, argument: str, shape: tuple[int, ...], names: list[str], sizes: dict[str, tuple[Any, str]]
) -> None:
    """Raises ValueError if the shape of an ``argument`` of a ``function`` does not fit, else adds its sizes to
    ``sizes``.

    ``names``: what its annotation calls the dimensions, such as ``["batch", "dim"]``. ``sizes``: size of each dimension
    so far (a tuple for ``*rows``), and the argument that has it.
    """
    variadic = [k for k, name in enumerate(names) if name.startswith("*") or name == "..."]
    if variadic:  # the one name that stands for several dimensions
        first = variadic[0]
        middle = len(shape) - (len(names) - 1)
        fits = middle >= 0
        values = [*shape[:first], shape[first : first + middle], *shape[first + middle :]] if fits else []
    else:
        fits, values = len(shape) == len(names), list(shape)
    known = []  # the sizes that other arguments or the annotation ask for
    for name, value in zip(names, values, strict=fits):
        if name.isdigit():
            fits = fits and value == int(name)
        elif name.lstrip("*").isidentifier() and not name.startswith("_"):
            expected, where = sizes.setdefault(name, (value, argument))
            if expected != value:
                fits = False
                size = list(expected) if isinstance(expected, tuple) else expected
                known.append(f"{name}={size} (as in {where})")
    if not fits:
        wanted = f" with {', '.join(known)}" if known else ""
        raise ValueError(f"{function}: {argument} must be [{', '.join(names)}]{wanted}, got {list(shape)}")
