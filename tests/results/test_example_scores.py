"""Per-example scores: written ones come back, broken files are named."""

import csv

import numpy as np
import pytest

from input_pipeline.digests import DamagedError
from plan_jax.results import example_scores
from plan_jax.results.example_scores import ExampleScores, example_id


def _scores():
  ids = [
    example_id("a.png", "small left effusion"),
    example_id("a.png", 'a "mass", or\r\ntwo\tétés'),
    example_id("b,c"),
    example_id("d", ""),
  ]
  values = np.array([[0.1, 1 / 3], [np.nan, -1e-17], [2.0, np.nan], [1e300, 0.1 + 0.2]])
  return ExampleScores(
    ids, ["effusion", "mass", "all", ""], ["p", "p", "q\nr", "s"], ("m", "R@1, x"), values
  )


def test_scores_come_back_as_written(tmp_path):
  path = tmp_path / "example_scores" / "grounding.csv"
  example_scores.write(path, _scores())
  got, wanted = example_scores.read(path), _scores()
  for name in ("ids", "groups", "patients", "metrics"):
    assert getattr(got, name) == getattr(wanted, name)
  assert got.values.dtype == np.float64
  assert np.array_equal(got.values, wanted.values, equal_nan=True)  # to the last bit
  assert list(path.parent.iterdir()) == [path]
  lines = path.read_text().splitlines()
  assert lines[0] == 'image_id,phrase,patient_id,group,m,"R@1, x"'
  assert lines[1] == "a.png,small left effusion,p,effusion,0.1,0.3333333333333333"


FORMULAS = ("=1+1", "+1", "-a", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''=1", "'quoted'", "''", "a=1")


def test_no_text_is_a_formula_of_a_spreadsheet(tmp_path):
  path, n = tmp_path / "u.csv", len(FORMULAS)
  ids = [example_id(name, name) for name in FORMULAS]
  values = np.linspace(-1, 1, n * n).reshape(n, n)
  written = ExampleScores(ids, list(FORMULAS), list(FORMULAS), FORMULAS, values)
  example_scores.write(path, written)
  got = example_scores.read(path)
  for name in ("ids", "groups", "patients", "metrics"):
    assert getattr(got, name) == getattr(written, name)
  assert np.array_equal(got.values, values)
  with path.open(newline="") as file:
    head, *lines = csv.reader(file)
  for text in [cell for line in lines for cell in line[:4]] + head:
    assert not text.startswith(("=", "+", "-", "@", "\t", "\r"))
  assert lines[0][:2] == ["'=1+1", "'=1+1"] and lines[0][4] == "-1.0"  # a number stays one


def test_no_examples_are_a_file_too(tmp_path):
  example_scores.write(tmp_path / "u.csv", ExampleScores([], [], [], ("m",), np.zeros((0, 1))))
  got = example_scores.read(tmp_path / "u.csv")
  assert got.ids == [] and got.metrics == ("m",) and got.values.shape == (0, 1)


def test_a_failed_write_leaves_the_old_file(tmp_path):
  path = tmp_path / "u.csv"
  example_scores.write(path, _scores())
  with pytest.raises(ValueError, match="u.csv: a value is infinite"):
    example_scores.write(path, ExampleScores(["x\t"], ["g"], ["p"], ("m",), np.array([[np.inf]])))
  assert len(example_scores.read(path).ids) == 4


def test_scores_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="2 ids, 2 groups, 1 patients"):
    ExampleScores(["a\t", "b\t"], ["g", "g"], ["p"], ("m",), np.zeros((2, 1)))
  with pytest.raises(ValueError, match=r"values \(1, 2\)"):
    ExampleScores(["a\t"], ["g"], ["p"], ("m",), np.zeros((1, 2)))
  with pytest.raises(ValueError, match=r"'a\\tx' stands twice"):
    ExampleScores(["a\tx"] * 2, ["g", "g"], ["p", "p"], ("m",), np.zeros((2, 1)))


HEAD = b"image_id,phrase,patient_id,group,m\n"


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "line 1: the header is"),
    (b"image,phrase\n", "line 1: the header is .*'image', 'phrase'"),
    (HEAD + b"a,x,p,g,1\na,y,p,g\n", "line 3: 4 cells, the header has 5"),
    (HEAD + b"a,x,p,g,1\n\n", "line 3: 0 cells"),
    (HEAD + b"a,x,p,g,much\n", "line 2: .*'much'"),
    (HEAD + b"a,x,p,g,nan\n", "line 2: 'nan' is not a finite number"),
    (HEAD + b'a,"two\nlines",p,g,1\nb,"x,p,g,1\n', "line [34]: unexpected end"),
    (HEAD + b"a,\xff,p,g,1\n", "line [12]: 'utf-8' codec"),
    (HEAD + b"a,x,p,g,1\na,x,p,g,2\n", r"line 3: example 'a\\tx' stands twice"),
  ],
)
def test_broken_files_are_named(tmp_path, content, message):
  path = tmp_path / "u.csv"
  path.write_bytes(content)
  with pytest.raises(DamagedError, match=f"u.csv, {message}.*evaluate again"):
    example_scores.read(path)
  with pytest.raises(FileNotFoundError):
    example_scores.read(tmp_path / "none.csv")
