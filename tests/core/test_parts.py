"""Parts of a configuration that are chosen by name."""

import dataclasses
from typing import ClassVar, Literal

import pytest

from xmodal_jax.core import parts
from xmodal_jax.core.parts import Advanced, FilledIn
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


@dataclasses.dataclass(frozen=True)
class Line:
    name: ClassVar[str] = "line"
    ends: "str" = "round"
    dashes: "str | None" = None
    length: "float" = 1.0


Line.__annotations__ |= dict(
    ends=Literal["round", "flat"], dashes=Advanced[Literal["long"] | None], length=FilledIn[float]
)


def test_choices_are_checked():
    parts.check_choices(Line())
    parts.check_choices(Line(ends="flat", dashes="long"))
    with pytest.raises(ValueError, match=r"Line.ends must be one of \('round', 'flat'\), got 'sharp'"):
        parts.check_choices(Line(ends="sharp"))
    with pytest.raises(ValueError, match=r"Line.dashes must be one of \('long', None\), got 'short'"):
        parts.check_choices(Line(dashes="short"))


def test_what_the_program_fills_in_is_no_option():
    assert parts.options_of(Line) == parts.options_of(Line()) == ("ends", "dashes")


@dataclasses.dataclass(frozen=True)
class Traced(Circle):
    name: ClassVar[str] = "traced"
    chosen_by: ClassVar[str] = "--trace FILE"


def test_names_that_choose_a_part():
    assert parts.names_of(Circle | Traced) == ["circle"]
    assert parts.names_of(Circle | Box | None) == ["circle", "box", "none"]
