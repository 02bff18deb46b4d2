import csv
import errno
import json
import os

import pytest
from PIL import Image

from input_pipeline.errors import UserError
from plan_jax.commands import ground, groundings, inputs
from plan_jax.inference.predictor import Predictor


def run_command(*arguments):
  ground.main([str(argument) for argument in arguments])


def test_one_image_and_phrase(run, images, tmp_path, capsys):
  out = tmp_path / "overlay.png"
  given = f"--workdir={run}", f"--image={images}/0.png", "--phrase=left effusion"
  run_command(*given, f"--out={out}")
  text = capsys.readouterr().out
  assert text.startswith(f"{images}/0.png: left effusion\n  score ") and "  box x " in text
  assert text.endswith(f"  overlay: {out}\n")
  with Image.open(out) as overlay:
    assert overlay.size == (64, 64)
  run_command(*given, "--phrase=edema", "--json", "--threshold=1")
  first, second = map(json.loads, capsys.readouterr().out.splitlines())
  assert (first["phrase"], second["phrase"]) == ("left effusion", "edema")
  assert first["width"] == first["height"] == 64 and first["threshold"] == 1
  assert set(first["boxes"][0]) == {"x0", "y0", "x1", "y1", "score"}
  assert f"score {first['score']:.3f}" in text


def test_a_folder_is_a_batch_and_what_cannot_be_read_is_counted(
  run, images, tmp_path, capsys, caplog
):
  out = tmp_path / "out"
  with pytest.raises(SystemExit, match="error: 1 of 4 could not be read"):
    run_command(f"--workdir={run}", f"--image={images}", "--phrase=+effusion", f"--out={out}")
  printed = capsys.readouterr()
  assert "broken.png" in printed.err and f"1 files of {images} are left aside" in caplog.text
  assert printed.out.endswith(f"results: {out}/grounding.csv\n")
  lines = list(csv.DictReader((out / "grounding.csv").read_text().splitlines()))
  assert [line["phrase"] for line in lines] == ["'+effusion"] * 4  # no formula
  assert [bool(line["error"]) for line in lines] == [False, False, False, True]
  overlays = sorted(path.name for path in (out / "overlays").iterdir())
  assert overlays == [f"0000{i + 1}-{i}-_effusion.png" for i in range(3)]
  with pytest.raises(SystemExit, match="exists: name a new folder"):
    run_command(f"--workdir={run}", f"--image={images}", "--phrase=effusion", f"--out={out}")


def test_a_table_names_images_beside_it_and_their_phrases(run, images, tmp_path, capsys):
  table = images / "table.csv"
  table.write_text('image,phrase\n0.png,"left ../../\x1b[2J"\n0.png,...\n1.png,edema\n')
  out = tmp_path / "out"
  with pytest.raises(SystemExit, match="1 of 3 could not be read"):
    run_command(f"--workdir={run}", f"--image={table}", f"--out={out}", "--json")
  assert "\x1b" not in "".join(capsys.readouterr())
  lines = [json.loads(line) for line in (out / "grounding.jsonl").read_text().splitlines()]
  assert ["error" in line for line in lines] == [False, True, False]
  assert "has no word" in lines[1]["error"]
  assert all(path.parent == out / "overlays" for path in out.rglob("*.png"))
  table.unlink()


def test_many_phrases_of_an_image_are_grounded_some_at_a_time(
  run, images, capsys, caplog, monkeypatch
):
  phrases = [f"effusion {i}" for i in range(4)] + ["edema " * 400]
  calls, whole = [], Predictor.ground

  def counted(model, image, chunk):
    calls.append(len(chunk))
    return whole(model, image, chunk)

  monkeypatch.setattr(Predictor, "ground", counted)
  given = f"--workdir={run}", f"--image={images}/0.png", *(f"--phrase={p}" for p in phrases)
  run_command(*given, "--json")
  together = capsys.readouterr().out
  monkeypatch.setattr(groundings, "_TOGETHER", 2)
  run_command(*given, "--json")
  apart = capsys.readouterr().out
  assert calls == [5, 2, 2, 1]
  # Where tests run, the log goes to stdout too.
  rows, others = (
    [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    for out in (together, apart)
  )
  for row, other in zip(rows, others, strict=True):
    assert row["phrase"] == other["phrase"]
    assert row["score"] == pytest.approx(other["score"], abs=1e-4)
  assert "is too long" in rows[-1]["warning"] and "1 sentences found no room" in caplog.text


def test_a_phrase_that_stands_twice_is_grounded_once(run, images, tmp_path, capsys):
  boxes = tmp_path / "boxes.csv"
  given = f"--workdir={run}", f"--image={images}/0.png", "--phrase=edema", "--phrase=effusion"
  written = []
  for more in ((), ("--phrase=edema",)):
    run_command(*given, *more, "--json", f"--boxes-out={boxes}")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [json.loads(row)["phrase"] for row in rows] == ["edema", "effusion"]
    written.append(boxes.read_bytes())
    boxes.unlink()
  assert written[0] == written[1]


def test_a_warning_is_given_once(run, images, capsys, caplog):
  run_command(f"--workdir={run}", f"--image={images}/0.png", "--phrase=zxqv")
  assert "warning" not in capsys.readouterr().out
  assert caplog.text.count("'zxqv' has no word that the model knows") == 1


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
  def refuse(path):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

  monkeypatch.setattr(os, "scandir", refuse)
  with pytest.raises(UserError, match=f"{tmp_path} cannot be read .Permission denied"):
    inputs.list_images(str(tmp_path))


@pytest.mark.parametrize("suffix", [".TIF", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".pgm", ""])
def test_a_folder_gives_every_image_that_can_be_read(images, tmp_path, suffix, caplog):
  names = {f"0{suffix}", "0.txt", "1.txt", "a.csv", ".DS_Store"}
  (tmp_path / "below").mkdir()
  for name in names:
    (tmp_path / "below" / name).write_bytes(b"")
  assert inputs.list_images(str(tmp_path)) == [tmp_path / "below" / f"0{suffix}"]
  assert f"4 files of {tmp_path} are left aside" in caplog.text
  assert all(count in caplog.text for count in ("2 .txt", "1 .csv", "1 hidden"))
  (tmp_path / "below" / f"0{suffix}").unlink()
  with pytest.raises(UserError, match=r"no image by name, but 2 \.txt.*: name a folder of .*tiff"):
    inputs.list_images(str(tmp_path))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--image=IMAGES/0.png"], "--phrase is missing"),
    (["--image=IMAGES/0.png", "--phrase=..."], "--phrase[0] has no word"),
    (["--image=IMAGES/0.png", "--phrase=a", "--out=IMAGES/0.png/x.png"], "cannot be written"),
    (["--image=IMAGES/0.png", "--phrase=a", "--boxes-out=IMAGES/0.png/x.csv"], "cannot be written"),
    (["--image=IMAGES", "--phrase=a", "--out=IMAGES/0.png/x"], "cannot be written"),
    (["--image=IMAGES", "--phrase=edema"], "--out is missing"),
    (["--image=IMAGES/0.png", "--phrase=edema", "--out=x.jpg"], "name a .png file"),
    (["--image=IMAGES/none.csv", "--phrase=edema"], "--phrase: leave it out"),
    (["--image=IMAGES/none.csv", "--out=OUT"], "none.csv"),
    (["--image=IMAGES/0.png", "--phrase=edema", "--workdir=OUT"], "holds no run"),
    (["--image=IMAGES", "--phrase=edema", "--workdir=OUT", "--out=OUT2"], "holds no run"),
    (["--image=", "--phrase=edema", "--out=OUT"], "the images have an empty name"),
    (["--image=IMAGES/0.png", "--phrase=edema", "--threshold=2"], "'2' is not above 0"),
    (
      ["--image=IMAGES/0.png", "--phrase=edema", "--out=IMAGES/0.png"],
      "0.png exists: name another",
    ),
    (["--image=IMAGES/0.png", "--phrase=a", "--phrase=b", "--out=OUT.png"], "several overlays"),
    (["--image=IMAGES/broken.png", "--phrase=edema"], "broken.png"),
    (["--image=IMAGES/none.png", "--phrase=edema"], "none.png cannot be read"),
    (
      ["--image=IMAGES/0.png", "--phrase=edema", "--out=/proc/x.png"],
      "/proc/x.png cannot be written",
    ),
  ],
)
def test_errors_are_one_line_before_any_work(run, images, tmp_path, capsys, arguments, message):
  replaced = [a.replace("IMAGES", str(images)).replace("OUT", f"{tmp_path}/o") for a in arguments]
  with pytest.raises(SystemExit) as caught:
    run_command(f"--workdir={run}", *replaced)
  error = capsys.readouterr().err if caught.value.code == 2 else str(caught.value)
  assert error.startswith("error: ") and message in error and "\n" not in error[:-1]
  with Image.open(images / "0.png") as image:
    assert image.mode == "L"  # as it was
  assert caught.value.code != 0 and not list(tmp_path.iterdir())
