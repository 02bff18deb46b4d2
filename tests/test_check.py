import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from input_pipeline import check, convert, phantom, records, soundness
from input_pipeline.readers import phantom as phantom_reader
from input_pipeline.soundness import ERROR, WARNING
from input_pipeline.study import Region

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "cxr_mini"


def study(i, **changes):
  return replace(phantom.study(0, i, 128), **changes)


def png(pixels):
  return cv2.imencode(".png", pixels)[1].tobytes()


def written(folder, **splits):
  """Records as others could have written them: nothing is checked but the form."""
  folder.mkdir(parents=True)
  paths = {}
  for split, studies in splits.items():
    path = folder / records.shard_name("set", split, 0, 1)
    with records.ShardWriter(path) as writer:
      for one in studies:
        writer.write(one)
    paths[split] = [path]
  records.write_metadata(folder, "set", paths)
  return folder


def found(folder):
  films, broken = check.see(folder, workers=1, progress=False)
  return {p.name: p for p in soundness.problems(films, broken)}


def films(*numbers):
  """Phantom films, each of a patient of its own."""
  return [study(7 * i, patient_id=f"p{i}") for i in numbers]


def test_the_phantom_is_sound(tmp_path):
  options = {"train_films": 24, "validation_films": 8, "test_films": 8, "size_px": 128}
  assert set(options) <= set(phantom_reader.open_source.__kwdefaults__)
  convert.convert("phantom", tmp_path / "a", workers=1, progress=False, **options)
  problems = found(tmp_path / "a")
  assert not [p for p in problems.values() if p.level == ERROR]
  seen, _ = check.see(tmp_path / "a", workers=2, progress=False)
  alone, _ = check.see(tmp_path / "a", workers=1, progress=False)
  assert [f.image_id for f in seen] == [f.image_id for f in alone]
  assert soundness.counts(seen)[""]["films"] == {"train": 24, "validation": 8, "test": 8}


def test_patients_studies_and_ids(tmp_path):
  a, b, c, d = films(0, 1, 2, 3)
  problems = found(
    written(
      tmp_path / "a",
      train=[a, b, replace(c, image_id=a.image_id)],
      test=[replace(d, patient_id=a.patient_id), replace(films(4)[0], study_id=b.study_id)],
    )
  )
  assert problems["patient in two splits"].count == 1
  assert problems["study in two splits"].count == 1
  assert problems["image ids that stand twice"].examples == (f"{a.image_id}: 2 times",)
  assert {p.level for p in problems.values() if "two" in p.name and "text" not in p.name} == {ERROR}


def test_equal_and_nearly_equal_pictures(tmp_path):
  a, b, c, d = films(0, 1, 2, 3)
  pixels = cv2.imdecode(np.frombuffer(b.image, np.uint8), 0)
  jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()
  problems = found(
    written(
      tmp_path / "a",
      train=[a, b, c, replace(d, image=c.image)],
      test=[replace(films(5)[0], image=a.image), replace(films(6)[0], image=jpeg)],
    )
  )
  names = {n: (p.level, p.count) for n, p in problems.items() if "picture" in n}
  assert names == {
    "the same picture in two splits": (ERROR, 1),
    "nearly the same picture in two splits": (ERROR, 1),
    "the same picture twice in a split": (WARNING, 1),
  }
  pair = problems["nearly the same picture in two splits"].films
  assert {f.split for f in pair} == {"train", "test"} and len(pair) == 2


def test_texts(tmp_path):
  a, b, c, d, e = films(0, 1, 2, 3, 4)
  problems = found(
    written(
      tmp_path / "a",
      train=[
        replace(a, sentences=("Heart XXXX is normal.", "___")),
        replace(b, sentences=("No effusion.",)),
        replace(c, sentences=()),
      ],
      test=[replace(d, sentences=("no effusion",)), replace(e, sentences=("12 34.",))],
    )
  )
  assert problems["films without text"].count == 1
  assert problems["texts that several studies share"].examples == ("2 times: No effusion.",)
  assert problems["texts that stand in two splits"].count == 1
  assert problems["texts with marks of de-identification"].examples[0].endswith("2 marks")
  assert problems["sentences without a letter"].count == 2
  assert not [p for p in problems.values() if p.level == ERROR]


def test_films_that_are_constant_inverted_or_small(tmp_path):
  a, b, c, d = films(0, 1, 2, 3)
  inverted = 255 - cv2.imdecode(np.frombuffer(b.image, np.uint8), 0)
  small = cv2.resize(inverted, (64, 64))
  flat = np.full((128, 128), 9, np.uint8)
  problems = found(
    written(
      tmp_path / "a",
      train=[
        a,
        replace(b, image=png(inverted)),
        replace(c, image=png(flat), regions=()),
        replace(d, image=png(small), width=64, height=64, regions=(), view="LATERAL"),
      ],
    )
  )
  assert problems["films that seem inverted"].count == 1  # of a lateral nothing is known
  assert problems["constant films"].count == problems["films under 100 px"].count == 1


def test_records_that_lie_or_cannot_be_read(tmp_path, monkeypatch):
  a, b, c = films(0, 1, 2)
  outside = Region("x", "x", np.array([[0, 0, 500, 20]], np.float32))
  empty = Region("y", "y", np.zeros((0, 4), np.float32), png(np.zeros((128, 128), np.uint8)))
  with monkeypatch.context() as patch:
    patch.setattr("input_pipeline.study.check", lambda study: None)
    folder = written(
      tmp_path / "a",
      train=[a, replace(b, regions=(outside,)), replace(c, regions=(empty,))],
      test=[replace(films(3)[0], width=99, regions=())],
    )
  problems = found(folder)
  assert problems["records that contradict themselves"].count == 3
  shard = folder / records.shard_name("set", "train", 0, 1)
  data = bytearray(shard.read_bytes())
  data[200] ^= 1
  shard.write_bytes(data)
  problems = found(folder)
  assert problems["records that cannot be read"].count == 1
  assert problems["records that contradict themselves"].count == 3


def test_leaks(tmp_path):
  a, b, c, d, e, f = films(0, 1, 2, 3, 4, 5)
  train = written(tmp_path / "train", train=[a, b], test=[c])
  test = written(
    tmp_path / "test",
    train=[replace(d, patient_id=c.patient_id)],
    test=[
      replace(e, patient_id=a.patient_id),
      replace(f, image=b.image),
      replace(films(6)[0], image_id=a.image_id),
    ],
  )
  mine, others = (check.see(folder, workers=1, progress=False)[0] for folder in (train, test))
  problems = {p.name: (p.level, p.count) for p in soundness.leaks(mine, others)}
  both = "training and evaluation share "
  assert problems[f"{both}patients"] == (ERROR, 1)
  assert problems[f"{both}images by id"] == (ERROR, 1)
  assert problems[f"{both}the same pictures"] == (ERROR, 1)
  assert problems[f"{both}patients (the other way)"] == (ERROR, 1)
  apart = written(tmp_path / "apart", test=films(8, 9))
  others, _ = check.see(apart, workers=1, progress=False)
  assert not [p for p in soundness.leaks(mine, others) if p.level == ERROR]


def run(*flags):
  call = [sys.executable, "-m", "input_pipeline.check", *map(str, flags), "--workers=1"]
  return subprocess.run(call, capture_output=True, text=True, timeout=120)


def test_command_line_and_page(tmp_path):
  a, b, c = films(0, 1, 2)
  sound = written(tmp_path / "sound", train=[a, b], test=[replace(c, sentences=())])
  page = tmp_path / "page.html"
  done = run(f"--records={sound}", f"--out={page}")
  assert done.returncode == 0, done.stderr
  assert "sound: 0 errors" in done.stdout and "films without text: 1 of 3" in done.stdout
  text = page.read_text()
  assert "films without text" in text and text.count("data:image/jpeg") == 4
  assert run(f"--records={sound}", "--strict").returncode == 1
  leaky = written(tmp_path / "leaky", test=[replace(films(5)[0], patient_id=a.patient_id)])
  done = run(f"--records={sound}", f"--against={leaky}", f"--out={page}")
  assert done.returncode == 1
  assert "ERROR: training and evaluation share patients: 1 of 1" in done.stdout
  assert "share patients" in page.read_text()
  done = run(f"--records={tmp_path / 'none'}")
  assert done.returncode == 2 and "there is no such folder" in done.stderr


@pytest.mark.skipif(not REAL.exists(), reason="the real films are not there")
def test_real_films(tmp_path):
  convert.convert("folder", tmp_path / "a", source=str(REAL), image_px=128, progress=False)
  problems = found(tmp_path / "a")
  assert not [p for p in problems.values() if p.level == ERROR]
  assert problems["films that seem inverted"].count == 1
