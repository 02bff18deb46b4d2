"""Sections: the types of their values and of what these hold, before any rule compares them."""

from dataclasses import dataclass
from typing import Annotated

import pytest

from input_pipeline.section import PositiveInt, Rule, Section, SectionError

Positive = Annotated[tuple[float, ...], Rule(lambda values: all(v > 0 for v in values), "above 0")]


@dataclass(frozen=True, kw_only=True)
class Inner(Section):
  count: PositiveInt = 1


@dataclass(frozen=True, kw_only=True)
class Outer(Section):
  tau: Positive = ()
  names: tuple[str, ...] = ()
  mesh: dict[str, int] = None
  flag: bool | None = None
  inner: Inner = None
  sets: dict[str, Inner] = None


GIVEN = {
  "tau": [0.5, 1],
  "names": ("a",),
  "mesh": {"data": -1},
  "inner": {"count": 2},
  "sets": {"x": {}},
}


def test_what_fits():
  read = Outer.read(GIVEN)
  assert read == Outer(
    tau=(0.5, 1), names=("a",), mesh={"data": -1}, inner=Inner(count=2), sets={"x": Inner()}
  )


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("tau", ("x",), "tau: is ('x',); must be of type tuple[float, ...]"),
    ("tau", [None], "tau: is (None,); must be of type tuple[float, ...]"),
    ("tau", (True,), "tau: is (True,); must be of type tuple[float, ...]"),
    ("tau", ((1.0,),), "tau: is ((1.0,),); must be of type tuple[float, ...]"),
    ("tau", 1.0, "tau: is 1.0; must be of type tuple[float, ...]"),
    ("tau", (0.5, 0), "tau: is (0.5, 0); above 0"),
    ("names", (3,), "names: is (3,); must be of type tuple[str, ...]"),
    ("names", "abc", "names: is 'abc'; must be of type tuple[str, ...]"),
    ("mesh", {"data": "x"}, "mesh: is {'data': 'x'}; must be of type dict[str, int]"),
    ("mesh", 3, "mesh: is 3; must be of type dict[str, int]"),
    ("flag", 3, "flag: is 3; must be of type bool | None"),
    ("inner", 3, "inner: is 3; must hold keys"),
    ("inner", {"count": "x"}, "inner.count: is 'x'; must be of type int"),
    ("sets", (), "sets: is (); must hold keys"),
    ("sets", {"x": None}, "sets.x: is None; must hold keys"),
    ("sets", {"x": {"count": 0}}, "sets.x.count: is 0; must be positive"),
  ],
)
def test_what_does_not_fit_is_named(key, value, message):
  with pytest.raises(SectionError) as error:
    Outer.read(GIVEN | {key: value})
  assert str(error.value) == message
