import ast

import pytest

from input_pipeline import terminal
from input_pipeline.errors import UserError
from paths import ROOT

NAMES = [
  ("Köhler’s sign, 心臓 \u00a0\u3000|", "Köhler’s sign, 心臓 \u00a0\u3000|"),
  ("a\nsound", r"a\nsound"),
  ("\x1b[2K\r", r"\x1b[2K\r"),
  ("\x9b2J\x7f\t\0", r"\x9b2J\x7f\t\x00"),
  ("\u202eright to left\u200b\u2028\u2029", r"\u202eright to left\u200b\u2028\u2029"),
  ("\ud800\udcff", r"\ud800\udcff"),
  ("\U000e0001", r"\U000e0001"),
  (r"C:\new", r"C:\new"),
]


@pytest.mark.parametrize(("text", "escaped"), NAMES)
def test_what_does_not_print_is_escaped(text, escaped):
  assert terminal.escape(text) == terminal.escape(escaped) == escaped
  assert str(UserError(text)) == escaped
  assert terminal.escape_lines(f"{text}\n{text}") == "\n".join(
    terminal.escape_lines(text).split("\n") * 2
  )
  assert terminal.join([text, "b"]) == f"{escaped}, b"


def test_lines_stay_lines():
  assert terminal.escape_lines("a\nb\x1b\n") == "a\nb\\x1b\n"


def test_no_log_lists_names_as_they_are():
  """Names are escaped one by one: a message has newlines of its own, so its handler leaves all."""
  calls = [
    (path, call)
    for package in ("plan_jax", "input_pipeline", "launch")
    for path in sorted((ROOT / package).rglob("*.py"))
    for call in ast.walk(ast.parse(path.read_text()))
    if isinstance(call, ast.Call) and ast.unparse(call.func) in ("log.info", "notify")
  ]
  assert len(calls) > 50
  for path, call in calls:
    assert "', '.join(" not in ast.unparse(call), f"{path}:{call.lineno}"
