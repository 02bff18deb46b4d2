import gzip
import math
import os
import tracemalloc
import zipfile

import pytest

from input_pipeline.example import UnreadableError
from input_pipeline.readers.raw import folders, tables
from input_pipeline.readers.raw.folders import SourceError

TEXT = 'a,b\n1, "x, y" \n\n2,\n'.replace(', "x, y" ', ',"x, y"')


def written(tmp_path, kind, content=TEXT):
  data = content.encode() if isinstance(content, str) else content
  path = tmp_path / f"t{kind}"
  if kind.endswith(".gz"):
    path.write_bytes(gzip.compress(data))
  elif kind.endswith(".zip"):
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("t.csv", data)
  else:
    path.write_bytes(data)
  return path


@pytest.mark.parametrize("kind", [".csv", ".csv.gz", ".csv.zip"])
def test_rows_with_their_numbers(tmp_path, kind):
  rows = list(tables.read(written(tmp_path, kind), ("a",)))
  assert [(dict(row), row.number) for row in rows] == [
    ({"a": "1", "b": "x, y"}, 2),
    ({"a": "2", "b": ""}, 4),
  ]
  assert rows[1].place == f"t{kind} row 4"


def test_names_replace_a_first_row_that_lies(tmp_path):
  path = written(tmp_path, ".csv", 'Label,"Box [x,y]",,\nn,1,2,,\n')
  (row,) = tables.read(path, ("x",), names=("label", "x", "y"))
  assert dict(row) == {"label": "n", "x": "1", "y": "2"}
  with pytest.raises(SourceError, match="row 2: 4 cells for 3"):
    list(tables.read(written(tmp_path, ".csv", "L,B\nn,1,2,3\n"), (), names=("label", "x", "y")))


@pytest.mark.parametrize(
  ("kind", "content", "words"),
  [
    (".csv", "a\n1\n", "no column 'b'; the first row names 'a'"),
    (".csv", "", "no column 'a', 'b'; the first row names nothing"),
    (".csv", "a,b,b\n", "'b' twice"),
    (".csv", "a,b\n1\n", "row 2: 1 cells for 2 columns"),
    (".csv", 'a,b\n1,"x\n', "not a CSV file"),
    (".csv", b"a,b\n1,\xff\n", "not UTF-8"),
    (".csv.zip", "a\n", "no column 'b'"),
  ],
)
def test_errors_name_the_place(tmp_path, kind, content, words):
  path = written(tmp_path, kind, content)
  with pytest.raises(SourceError, match=words) as caught:
    list(tables.read(path, ("a", "b")))
  assert str(path) in str(caught.value)


def test_truncated_and_foreign_archives(tmp_path):
  path = written(tmp_path, ".csv.gz", "a,b\n" + "1,2\n" * 9999)
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(SourceError, match="to its end .* download it again"):
    list(tables.read(path, ("a",)))
  for kind in (".csv.gz", ".csv.zip"):
    path.with_name(f"x{kind}").write_bytes(b"no archive at all")
    with pytest.raises(SourceError, match="download it again"):
      list(tables.read(path.with_name(f"x{kind}"), ("a",)))
  with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
    archive.writestr("a.csv", "a\n")
    archive.writestr("b.csv", "a\n")
  with pytest.raises(SourceError, match="holds 2 tables"):
    list(tables.read(tmp_path / "two.zip", ("a",)))
  with pytest.raises(SourceError, match="no such file"):
    list(tables.read(tmp_path / "none.csv", ("a",)))


def row(tmp_path, **cells):
  content = ",".join(cells) + "\n" + ",".join(cells.values()) + "\n"
  return next(tables.read(written(tmp_path, ".csv", content), ()))


def test_cells(tmp_path):
  cells = row(tmp_path, a="1.50", b="nan", c="-1.0", d="x", e="inf", f="2")
  assert cells.number_or_none("a") == 1.5 and cells.number_or_none("b") is None
  assert cells.label("c") == -1 and cells.label("b") is None
  assert cells.numbers("a", "f") == (1.5, 2.0) and cells.numbers("b", "b") is None
  assert cells.text("d") == "x" and cells.one_of("d", ("x", "y")) == "x"
  for call in (
    lambda: cells.number_or_none("d"),
    lambda: cells.number_or_none("e"),
    lambda: cells.label("f"),
    lambda: cells.numbers("a", "b"),
    lambda: cells.one_of("d", ("y",)),
  ):
    with pytest.raises(SourceError, match="t.csv, row 2, column '[a-f]'"):
      call()


def test_finding_files(tmp_path):
  (tmp_path / "v1").mkdir()
  (tmp_path / "v1" / "b.csv").touch()
  assert folders.find(tmp_path, "b.csv", "v1/b.csv") == tmp_path / "v1" / "b.csv"
  assert folders.find(tmp_path, "v*/b.csv") == tmp_path / "v1" / "b.csv"
  with pytest.raises(SourceError, match="there is no c.csv or d.csv; get it"):
    folders.find(tmp_path, "c.csv", "d.csv", hint="get it")
  (tmp_path / "v2").mkdir()
  (tmp_path / "v2" / "b.csv").touch()
  with pytest.raises(SourceError, match=r"is there 2 times \(v1/b.csv, v2/b.csv\)"):
    folders.find(tmp_path, "v*/b.csv")
  for source in ("", str(tmp_path / "none")):
    with pytest.raises(SourceError, match="the images"):
      folders.folder(source, "the images")


def test_files_outside_the_folder_are_refused(tmp_path):
  inside, outside = tmp_path / "in", tmp_path / "out"
  for folder in (inside, outside):
    folder.mkdir()
    (folder / "a").write_bytes(b"a")
  (inside / "link").symlink_to(outside / "a")
  (inside / "dead").symlink_to(outside / "none")
  (inside / "fine").symlink_to(inside / "a")
  root = folders.folder(inside, "images")
  assert folders.read_bytes(root, "a") == folders.read_bytes(root, "fine") == b"a"
  for name in ("link", "dead", "../out/a"):
    with pytest.raises(UnreadableError, match="leads out of the source folder"):
      folders.read_bytes(root, name)
  with pytest.raises(UnreadableError, match="no such file"):
    folders.read_bytes(root, "b")
  with pytest.raises(UnreadableError, match="not a regular file"):
    folders.read_bytes(root, ".")
  for name in ("\0", "a\0.png", "\ud800.png"):
    with pytest.raises(UnreadableError, match="no file can have such a name"):
      folders.read_bytes(root, name)
  with pytest.raises(UnreadableError, match="no such file"):
    folders.read_bytes(root, "a" * 5000)
  (tmp_path / "linked").symlink_to(inside)
  assert folders.read_bytes(folders.folder(tmp_path / "linked", "images"), "a") == b"a"


def test_a_file_without_an_end_is_not_read(tmp_path):
  (tmp_path / "a").touch()
  os.truncate(tmp_path / "a", 2**31 + 1)  # a hole, which takes no place on the disk
  with pytest.raises(UnreadableError, match="has 2147483649 bytes, more than an image can"):
    folders.read_bytes(tmp_path.resolve(), "a")


@pytest.mark.parametrize(
  ("text", "problem"),
  [
    ("[" * 100_000, "nested too deep"),
    ('{"a":' * 100_000, "nested too deep"),
    ('["\\ud800"]', "half a character, '.ud800'"),
    ('{"\\udc00": 1}', "half a character, '.udc00'"),
    ("[", "Expecting value"),
    (b"[\xff]", "not JSON in UTF-8 .*utf-8"),
  ],
)
def test_json_that_is_none(tmp_path, text, problem):
  path = tmp_path / "t.json"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  for read in (tables.read_json, lambda path: tables.read_list(path, "images")):
    with pytest.raises(SourceError, match=rf"t\.json: .*{problem}"):
      read(path)


def test_numbers_of_json_can_be_reckoned_with(tmp_path):
  parsed = tables.parse_json(f'[1, {"9" * 299}, {"9" * 401}, -{"9" * 5000}, 1.5, "\\ud83e\\ude7b"]')
  assert parsed == [1, int("9" * 299), math.inf, -math.inf, 1.5, "\U0001fa7b"]
  assert type(parsed[0]) is int


def test_a_cell_of_megabytes_is_cut_in_its_error(tmp_path):
  with pytest.raises(SourceError) as caught:
    row(tmp_path, a="x" * 5_000_000).one_of("a", ("y",))
  assert str(caught.value).endswith("must be one of y") and len(str(caught.value)) < 1000


def test_a_line_does_not_fill_the_memory(tmp_path):
  path = written(tmp_path, ".csv.gz", b"a,b\n1," + bytes(2**25))
  tracemalloc.start()
  with pytest.raises(SourceError, match="a line has 16777216 characters or more"):
    list(tables.read(path, ("a",)))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**26


def test_an_encrypted_archive_is_an_error(tmp_path):
  path = written(tmp_path, ".csv.zip")
  content = bytearray(path.read_bytes())
  for mark, place in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
    content[content.index(mark) + place] |= 1  # the flag of a password
  path.write_bytes(content)
  with pytest.raises(SourceError, match="cannot be read to its end .*encrypted"):
    list(tables.read(path, ("a",)))


def test_file_names(tmp_path):
  for name in ("1/a.png", "2/b.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  assert folders.file_names(tmp_path) == {"a.png": "1/a.png", "b.png": "2/b.png"}
  for name in ("1/.DS_Store", "2/.DS_Store"):  # a desktop leaves one in every folder
    (tmp_path / name).touch()
  assert folders.file_names(tmp_path, ".png") == {"a.png": "1/a.png", "b.png": "2/b.png"}
  folders.file_names.cache_clear()
  (tmp_path / "2" / "a.png").touch()
  with pytest.raises(SourceError, match="have the same name"):
    folders.file_names(tmp_path)


def test_report_bytes():
  assert folders.text("Größe ".encode()) == "Größe "
  assert folders.text("Größe".encode("latin-1")) == "Größe"
