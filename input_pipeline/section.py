"""Sections of a config: frozen dataclasses whose fields carry the rules that they are checked by.

An example:

  @dataclass(frozen=True, kw_only=True)
  class TextConfig(Section):
    max_words: PositiveInt
    tokenizer: Annotated[str, one_of("own", "bert")]

  TextConfig.read({"max_words": 0, "tokenizer": "own"})
  # SectionError: max_words: is 0; must be positive
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, NamedTuple, Self, get_args, get_origin, get_type_hints


class SectionError(ValueError):
  """A value breaks a rule: "KEY: is VALUE; RULE", with the key as the section knows it."""


class Rule(NamedTuple):
  """A test of a value, and what it says of the value where the test fails."""

  test: Callable[[Any], bool]
  text: str


def one_of(*allowed) -> Rule:
  """The rule that a value is one of these."""
  return Rule(lambda value: value in allowed, f"must be one of {', '.join(map(str, allowed))}")


POSITIVE = Rule(lambda value: value > 0, "must be positive")
NOT_NEGATIVE = Rule(lambda value: value >= 0, "must not be negative")

PositiveInt = Annotated[int, POSITIVE]
PositiveFloat = Annotated[float, POSITIVE]
FiniteFloat = Annotated[
  float, Rule(lambda value: 0 < value < math.inf, "must be positive and finite")
]
Count = Annotated[int, NOT_NEGATIVE]
Weight = Annotated[float, NOT_NEGATIVE]
Share = Annotated[float, Rule(lambda value: 0 <= value <= 1, "must lie in [0, 1]")]
ShareBelowOne = Annotated[float, Rule(lambda value: 0 <= value < 1, "must lie in [0, 1)")]
ShareAboveZero = Annotated[float, Rule(lambda value: 0 < value <= 1, "must lie in (0, 1]")]


@dataclass(frozen=True, kw_only=True)
class Section:
  """A section; subclasses add fields, and rules across them in `__post_init__`."""

  def __post_init__(self):
    """Checks every field by the type and the rules of its annotation.

    Raises SectionError at the first that breaks one.
    """
    kinds, hints = (get_type_hints(type(self), include_extras=extras) for extras in (False, True))
    for name in (field.name for field in fields(self)):
      fits = _fits(kinds[name], getattr(self, name))
      self.require(name, fits, f"must be of type {_name(kinds[name])}")
      for rule in getattr(hints[name], "__metadata__", ()):
        self.require(name, rule.test(getattr(self, name)), rule.text)

  def require(self, name: str, holds: bool, rule: str) -> None:
    """Raises SectionError, naming the field, its value and the rule, unless the rule holds."""
    if not holds:
      raise SectionError(f"{name}: is {getattr(self, name)!r}; {rule}")

  @classmethod
  def read(cls, values: Mapping[str, Any]) -> Self:
    """Reads the section from nested dicts, with the sections that are its fields.

    Raises SectionError for a key that is unknown or missing, and as the sections do.
    """
    kinds = get_type_hints(cls)
    if unknown := [name for name in values if name not in kinds]:
      raise SectionError(f"{unknown[0]}: is no key; there are {', '.join(kinds)}")
    given = dict(values)
    for field in fields(cls):
      if field.name in given:
        given[field.name] = _read(kinds[field.name], given[field.name], field.name)
      elif field.default is MISSING and field.default_factory is MISSING:
        raise SectionError(f"{field.name}: is missing")
    return cls(**given)

  @classmethod
  def read_at(cls, name: str, value: Any) -> Self:
    """Reads the section that is the value of a key, which comes first in errors, as `read` does."""
    require_keys(name, value)
    try:
      return cls.read(value)
    except SectionError as error:
      raise SectionError(f"{name}.{error}") from None


def require_keys(name: str, value) -> None:
  """Raises SectionError, naming the key, unless its value is a mapping."""
  if not hasattr(value, "keys"):
    raise SectionError(f"{name}: is {value!r}; must hold keys")


def _read(kind, value, name: str):
  """Reads a value of the type `kind`, with `name` before the keys in errors; JSON has no tuples."""
  if _is_section(kind):
    return kind.read_at(name, value)
  if get_origin(kind) is dict and _is_section(get_args(kind)[1]):
    require_keys(name, value)
    return {key: _read(get_args(kind)[1], entry, f"{name}.{key}") for key, entry in value.items()}
  return tuple(value) if get_origin(kind) is tuple and isinstance(value, list) else value


def _fits(kind, value) -> bool:
  """Tells whether a value is of a type, with all elements; an int is a float too."""
  if kind is Any:
    return True
  if kind in (int, float) and isinstance(value, bool):
    return False
  if kind is float:
    return isinstance(value, (int, float))
  if get_origin(kind) is tuple:  # of any length
    return isinstance(value, tuple) and all(_fits(get_args(kind)[0], x) for x in value)
  if get_origin(kind) is dict:
    return isinstance(value, dict) and all(_fits(get_args(kind)[1], x) for x in value.values())
  return isinstance(value, kind)


def _name(kind) -> str:
  return kind.__name__ if isinstance(kind, type) else str(kind)


def _is_section(kind) -> bool:
  return isinstance(kind, type) and issubclass(kind, Section)
