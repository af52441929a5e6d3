"""Parts of a configuration that are chosen by name."""

import dataclasses
from typing import ClassVar

import pytest

from xmodal_jax.core import parts
from xmodal_jax.train.run import from_json, to_json


@dataclasses.dataclass(frozen=True)
class Circle:
    name: ClassVar[str] = "circle"
    radius: float = 1.0


@dataclasses.dataclass(frozen=True)
class Box:
    name: ClassVar[str] = "box"
    width: float = 1.0
    inside: "Circle | None" = None


@dataclasses.dataclass(frozen=True)
class Named:
    name: str = "a field, not a part's name"


@dataclasses.dataclass(frozen=True)
class Drawing:
    shape: "Circle | Box" = Circle()
    label: str | None = None


Box.__annotations__["inside"] = Circle | None
Drawing.__annotations__["shape"] = Circle | Box


def test_the_parts_of_a_union_by_name():
    assert parts.parts_of(Circle | Box) == {"circle": Circle, "box": Box}
    assert parts.parts_of(Circle | None) == {"circle": Circle}
    assert parts.parts_of(int | None) == {} == parts.parts_of(Named)
    assert parts.options_of(Box) == ("width", "inside")


def test_choose_names_what_there_is():
    assert parts.choose(Circle | Box, "box") is Box
    with pytest.raises(ValueError, match="one of circle, box, got 'ring'"):
        parts.choose(Circle | Box, "ring")


@pytest.mark.parametrize("drawing", [Drawing(), Drawing(Box(2.0, Circle(3.0)), "b"), Drawing(Box())])
def test_json_there_and_back(drawing):
    described = to_json(drawing)
    assert described["shape"]["name"] == drawing.shape.name
    assert from_json(Drawing, described) == drawing


def test_json_of_another_version():
    with pytest.raises(ValueError, match="'ring' is none of circle, box"):
        from_json(Drawing, {"shape": {"name": "ring"}})
    with pytest.raises(ValueError, match="Circle has no field 'width'"):
        from_json(Drawing, {"shape": {"name": "circle", "width": 1.0}})
