import base64
import dataclasses
import html
import re
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from fakes.records import image_folder, write
from input_pipeline import example as example_lib
from input_pipeline import images, shards
from input_pipeline.checks import __main__ as command
from input_pipeline.checks import check as check_lib
from input_pipeline.checks import facts
from input_pipeline.checks.check import check
from input_pipeline.checks.facts import Place
from input_pipeline.conversion.convert import convert
from input_pipeline.errors import UserError
from input_pipeline.example import Region
from input_pipeline.phantom import radiograph
from paths import REAL, ROOT

EVIL = '<script>alert(1)</script> & "quotes" <!--BODY-->'


def example(i):
  """An image of a patient of its own, with a report like no other."""
  drawn = radiograph.example(0, 2 * i, 128)
  text = f"This is image {i}."
  return replace(drawn, sentences=(text,), sections={"findings": text}, regions=())


@pytest.fixture
def sets():
  """Four training images and two of validation: sound."""
  return {"train": [example(i) for i in range(4)], "validation": [example(i) for i in (4, 5)]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Writes splits as a folder of records, whatever they hold."""

  def make(splits, name="toy"):
    (tmp_path / name).mkdir()
    with monkeypatch.context() as patch:
      patch.setattr(example_lib, "check", lambda example: None)
      write(tmp_path / name, {split: [examples] for split, examples in splits.items()})
    return tmp_path / name

  return make


def summary(result, leaks=False):
  """Findings as {name: (level, count)}."""
  findings = result.leaks if leaks else result.findings
  return {finding.name: (finding.level, finding.count) for finding in findings}


def run(monkeypatch, capsys, *arguments):
  monkeypatch.setattr(sys, "argv", ["check", "--workers=1", *map(str, arguments)])
  with pytest.raises(SystemExit) as ended:
    command.main()
  printed = capsys.readouterr()
  return ended.value.code, printed.out, printed.err


def png(pixels):
  return cv2.imencode(".png", pixels)[1].tobytes()


def pixels(example):
  return images.decode(example.image)


def recoded(example):
  return cv2.imencode(".jpg", pixels(example), [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()


def squeezed(example, divisor):
  """The image's 256 grey levels in a few, and one hot pixel."""
  dark = pixels(example) // divisor
  dark[5, 5] = 255
  return png(dark)


def boxed(*corners):
  return (Region("a nodule", "nodule", np.array([corners], np.float32)),)


def masked(mask):
  return (Region("a nodule", "nodule", np.zeros((0, 4), np.float32), mask),)


def test_a_sound_phantom_is_sound(tmp_path, monkeypatch, capsys):
  counts = {"train_images": 40, "validation_images": 10, "test_images": 10}
  convert("phantom", tmp_path / "out", workers=1, progress=False, **counts)
  code, out, _ = run(monkeypatch, capsys, f"--records={tmp_path / 'out'}")
  assert code == 0
  assert "errors: none" in out and out.endswith("\nsound\n")
  assert re.search(r"^split +train +validation +test\nimages +40 +10 +10\n", out, re.MULTILINE)
  assert re.search(r"^patients +20 +5 +5$", out, re.MULTILINE)


def test_distinct_images_give_no_finding(folder, sets):
  result = check(folder(sets), workers=1, progress=False)
  assert result.findings == result.leaks == []
  assert result.is_sound(strict=True)


TOO_LONG = radiograph.example(0, 0, 128).image[:9000]
GREY = np.full((128, 128), 90, np.uint8)
DAMAGED = bytearray(radiograph.example(0, 0, 128).image)
assert DAMAGED[37:41] == b"IDAT"
DAMAGED[33] ^= 1  # of the length
# Changes of train 0, then of validation 0; the expected findings.
FINDINGS = {
  "patient": ({}, lambda a, b: {"patient_id": a.patient_id}, {"patients in two splits": "error"}),
  "study": (
    {},
    lambda a, b: {"patient_id": a.patient_id, "study_id": a.study_id},
    {"patients in two splits": "error", "studies in two splits": "error"},
  ),
  "study of two": (
    {},
    lambda a, b: {"study_id": a.study_id},
    {"studies in two splits": "error", "studies of two patients": "warning"},
  ),
  "image id": (
    {},
    lambda a, b: {"image_id": a.image_id},
    {"image ids that occur twice": "error"},
  ),
  "identical": (
    {},
    lambda a, b: {"image": png(pixels(a))},  # other bytes, same pixels
    {"identical images in two splits": "error"},
  ),
  "nearly identical": (
    {},
    lambda a, b: {"image": recoded(a)},
    {"nearly identical images in two splits": "error"},
  ),
  "box outside": (
    {"regions": boxed(100, 5, 129, 20)},
    {},
    {"records that contradict themselves": "error"},
  ),
  "box empty": (
    {"regions": boxed(7, 5, 7, 20)},
    {},
    {"records that contradict themselves": "error"},
  ),
  "box nowhere": (
    {"regions": boxed(np.nan, 5, 7, 20)},
    {},
    {"records that contradict themselves": "error"},
  ),
  "mask empty": ({"regions": masked(png(0 * GREY))}, {}, {"masks that are empty": "error"}),
  "mask of another size": (
    {"regions": masked(png(GREY[:50]))},
    {},
    {"masks that cannot be decoded or have another size than their image": "error"},
  ),
  "mask broken": (
    {"regions": masked(b"no image")},
    {},
    {"masks that cannot be decoded or have another size than their image": "error"},
  ),
  "image broken": ({"image": TOO_LONG}, {}, {"images that cannot be decoded": "error"}),
  "image with a wrong length, which Pillow passes over": (
    {"image": bytes(DAMAGED)},
    {},
    {"images that cannot be decoded": "error"},
  ),
  "image no image": ({"image": b"none"}, {}, {"images that cannot be decoded": "error"}),
  "image of another size": ({"width": 130}, {}, {"images that are not as recorded": "error"}),
  "image in colour": (
    {"image": png(cv2.applyColorMap(pixels(example(0)), cv2.COLORMAP_JET))},
    {},
    {"images that are not as recorded": "error"},
  ),
  "constant": (  # twice, but no duplicates
    {"image": png(GREY)},
    lambda a, b: {"image": a.image},
    {"images that are constant or nearly so": "warning"},
  ),
  "nearly constant": (
    {"image": png(GREY + np.arange(128, dtype=np.uint8)[None] // 12)},
    {},
    {"images that are constant or nearly so": "warning"},
  ),
  "squeezed": (
    {"image": squeezed(example(0), 16)},
    {},
    {"images that use less than a tenth of their range": "warning"},
  ),
  "squeezed to almost nothing": (
    {"image": squeezed(example(0), 64)},
    {},
    {"images that use less than a tenth of their range": "warning"},
  ),
  "dark": (
    {"image": png(pixels(example(0)) // 11)},
    {},
    {"images that use less than a tenth of their range": "warning"},
  ),
  "a quarter of the range": ({"image": png(pixels(example(0)) // 4)}, {}, {}),
  "inverted": (
    {"image": png(255 - pixels(example(0)))},
    {},
    {"images that seem inverted": "warning"},
  ),
  "inverted, lateral": ({"image": png(255 - pixels(example(0))), "view": "LATERAL"}, {}, {}),
  "short": (
    {"image": png(pixels(example(0))[::2, ::2]), "width": 64, "height": 64},
    {},
    {"images that have a side below 128 px": "warning"},
  ),
  "no text": ({"sentences": (), "sections": {}}, {}, {"images without text": "warning"}),
  "mark XXXX": (
    {"sections": {"findings": "Seen by XXXX and XXXX."}},
    {},
    {"texts with de-identification placeholders XXXX": "warning"},
  ),
  "mark ___": (
    {"sections": {}, "sentences": ("Compared to ___.",)},
    {},
    {"texts with de-identification placeholders ___": "warning"},
  ),
  "mark [** **]": (
    {"sections": {"findings": "On [**2101-1-\n5**]."}},
    {},
    {"texts with de-identification placeholders [** **]": "warning"},
  ),
  "no mark": ({"sections": {"": "XX, XXL, a_b, Xxxx, [*1*]."}}, {}, {}),
  "no letter": (
    {"sentences": ("1. 2.", "Clear.")},
    {},
    {"texts with sentences that have no letter": "warning"},
  ),
  "same report": (
    {},
    lambda a, b: {"sentences": ("this is IMAGE 0",)},
    {
      "reports that repeat another": "warning",
      "reports that repeat one of another split": "warning",
    },
  ),
  "same labels": (
    {"text_kind": "labels"},
    lambda a, b: {"sentences": a.sentences, "text_kind": "labels"},
    {},
  ),
}
TWO = ("constant", "same report")  # of which two images are counted


@pytest.mark.parametrize("case", FINDINGS)
def test_each_problem_gives_its_finding_alone(folder, sets, case):
  first, second, expected = FINDINGS[case]
  sets["train"][0] = replace(sets["train"][0], **first)
  second = second(sets["train"][0], sets["validation"][0]) if callable(second) else second
  sets["validation"][0] = replace(sets["validation"][0], **second)
  result = check(folder(sets), workers=1, progress=False)
  count = 2 if case in TWO else 1
  assert summary(result) == {name: (level, count) for name, level in expected.items()}
  assert len(result.images) == 6
  assert result.is_sound() == ("error" not in expected.values())
  assert result.is_sound(strict=True) == (not expected)
  for finding in result.findings:
    assert finding.examples and not finding.more


def test_duplicates_within_a_split_are_warnings(folder, sets):
  a, b, c, d = sets["train"]
  sets["train"] = [a, replace(b, image=a.image), c, replace(d, image=recoded(c))]
  result = check(folder(sets), workers=1, progress=False)
  names = ("identical images within a split", "nearly identical images within a split")
  assert summary(result) == dict.fromkeys(names, ("warning", 1))
  same, near = result.findings
  groups = same.images + near.images
  assert [[image.place.number for image in group] for group in groups] == [[0, 1], [2, 3]]


def test_a_copy_of_a_copy_names_images_of_different_splits(folder, sets):
  a, b, c, d = sets["train"]
  e, f = sets["validation"]
  sets = {
    "train": [a, replace(b, image=recoded(a)), c, d],
    "validation": [replace(e, image=a.image), f],
  }
  result = check(folder(sets), workers=1, progress=False)
  names = ("identical images in two splits", "nearly identical images in two splits")
  assert summary(result) == dict.fromkeys(names, ("error", 1))
  for finding in result.findings:
    assert {image.place.split for image in finding.images[0]} == {"train", "validation"}


def test_repeated_reports_are_counted_and_the_most_frequent_come_first(folder, sets):
  sets["train"] = [replace(example(i), sentences=(f"Same {i % 2 and 7}.",)) for i in range(5)]
  sets["validation"] = [replace(example(9), sentences=("Other.",))]
  result = check(folder(sets), workers=1, progress=False)
  (finding,) = result.findings
  assert finding.examples == ("3 times: 'same 0'", "2 times: 'same 7'")
  assert (finding.count, finding.total) == (5, 6)


def test_a_damaged_record_is_listed_and_the_pass_goes_on(folder, sets):
  directory = folder(sets)
  shard = next(directory.glob("*train*-of-00001"))
  content = bytearray(shard.read_bytes())
  content[shards.read_index(shard)["offsets"][1] + 400] ^= 1
  shard.write_bytes(content)
  result = check(directory, workers=1, progress=False)
  assert summary(result) == {"records that cannot be read": ("error", 1)}
  assert "record 1 is damaged" in result.findings[0].examples[0]
  assert [image.place.number for image in result.images] == [0, 2, 3, 0, 1]


def test_a_folder_that_was_written_anew_is_read_anew(folder, sets):
  directory = folder(sets)
  assert len(check(directory, workers=1, progress=False).images) == 6
  for path in directory.iterdir():
    path.unlink()
  write(directory, {"train": [sets["train"][1:]], "validation": [sets["validation"]]})
  assert len(check(directory, workers=1, progress=False).images) == 5


def other(numbers=(10, 11)):
  return {"test": [example(i) for i in numbers]}


LEAKS = {
  "nothing": (lambda a: {}, {}),
  "patient": (lambda a: {"patient_id": a.patient_id}, {"patients in both folders": "error"}),
  "study": (lambda a: {"study_id": a.study_id}, {"studies in both folders": "error"}),
  "image id": (lambda a: {"image_id": a.image_id}, {"image ids in both folders": "error"}),
  "identical": (lambda a: {"image": a.image}, {"identical images in both folders": "error"}),
  "nearly identical": (
    lambda a: {"image": recoded(a)},
    {"nearly identical images in both folders": "error"},
  ),
  "report": (
    lambda a: {"sentences": a.sentences},
    {"reports in the training split of one folder and an evaluation split of the other": "warning"},
  ),
}


@pytest.mark.parametrize("case", LEAKS)
def test_leaks_between_folders(folder, sets, case):
  change, expected = LEAKS[case]
  evaluation = other()
  evaluation["test"][1] = replace(evaluation["test"][1], **change(sets["train"][2]))
  one, two = folder(sets), folder(evaluation, "other")
  for first, second in ((one, two), (two, one)):
    result = check(first, second, workers=1, progress=False)
    assert result.findings == []
    assert summary(result, leaks=True) == {name: (level, 1) for name, level in expected.items()}
    assert result.is_sound() == ("error" not in expected.values())
    for finding in result.leaks:
      assert f"{one} train" in finding.examples[0] and f"{two} test" in finding.examples[0]


def test_reports_of_two_training_splits_are_no_leak(folder, sets):
  sets["train"].append(replace(example(20), sentences=sets["validation"][0].sentences))
  twin = {"train": [replace(example(10), sentences=sets["train"][0].sentences)]}
  result = check(folder(sets), folder(twin, "other"), workers=1, progress=False)
  assert result.leaks == []


def test_the_other_folder_is_not_judged_but_must_be_readable(folder, sets):
  evaluation = other()
  evaluation["test"].append(replace(example(12), patient_id="x", sentences=()))
  directory = folder(evaluation, "other")
  result = check(folder(sets), directory, workers=1, progress=False)
  assert result.findings == result.leaks == []
  shard = next(directory.glob("*-of-00001"))
  shard.write_bytes(shard.read_bytes()[:-9])
  result = check(result.records, directory, workers=1, progress=False)
  assert summary(result, leaks=True) == {"records that cannot be read": ("error", 1)}


def test_several_workers_agree_with_this_process(folder, sets, monkeypatch):
  sets["train"][1] = replace(sets["train"][1], image=recoded(sets["validation"][1]))
  one, two = folder(sets), folder(other((0, 10)), "other")
  monkeypatch.setattr(check_lib, "_CHUNK", 1)
  results = [check(one, two, workers=n, progress=False) for n in (1, 2)]
  assert len(results[0].findings) == 1 and len(results[0].leaks) == 5
  one, two = (dataclasses.replace(r, seconds=0, images_per_second=0) for r in results)
  assert one == two


def test_exit_status_and_errors(folder, sets, tmp_path, monkeypatch, capsys):
  sets["train"][0] = replace(sets["train"][0], sentences=(), sections={})
  odd = folder(sets)
  assert run(monkeypatch, capsys, f"--records={odd}")[0] == 0
  code, out, _ = run(monkeypatch, capsys, f"--records={odd}", "--strict")
  assert code == 1
  assert "images without text: 1 of 6 (17 %)\n    train 'phantom-000000'\n\nnot sound" in out
  for arguments, message in [
    ([f"--records={tmp_path / 'none'}"], "there is no such folder; run"),
    ([f"--records={odd}", f"--against={odd}/../toy"], "is the folder that is checked"),
    ([f"--records={odd}", f"--out={odd}"], "is a folder; --out names the page"),
  ]:
    code, _, error = run(monkeypatch, capsys, *arguments)
    assert code == 2 and "error: " in error and message in error


def test_names_cannot_forge_lines(folder, sets, tmp_path, monkeypatch, capsys):
  forged = "\x1b[2K\r\n\nerrors: none\n\nsound\n\u2028\x9b\u202e"
  first, second, *rest = sets["train"]
  sets["train"] = [
    replace(first, labels={forged: 1}, view=forged, regions=boxed(-9, 1, 5, 5)),
    replace(second, image_id=forged, study_id=forged, patient_id=forged, image=b"none"),
    *(replace(each, regions=(replace(*boxed(1, 2, 30, 40), label=forged),)) for each in rest),
  ]
  sets["validation"][0] = replace(sets["validation"][0], patient_id=forged)
  page = tmp_path / "page.html"
  code, out, _ = run(monkeypatch, capsys, f"--records={folder(sets)}", f"--out={page}")
  *lines, _ = out.splitlines()
  assert all(line.isprintable() for line in page.read_text().split("\n"))
  assert r"\u202e" in page.read_text()
  assert code == 1 and all(line.isprintable() for line in lines)
  assert [line for line in lines if line.startswith(("sound", "not sound", "errors"))] == [
    "errors: 3",
    "not sound",
  ]
  assert r"\x1b[2K\r\n\nerrors: none\n\nsound" in out


def test_the_command(folder, sets):
  sets["validation"][0] = replace(sets["validation"][0], image=sets["train"][0].image)
  line = [sys.executable, "-m", "input_pipeline.checks", f"--records={folder(sets)}"]
  done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert done.returncode == 1
  text = "identical images in two splits: 1 of 5 (20 %)\n    train 'phantom-000000' = val"
  assert text in done.stdout


def test_counts(folder, sets):
  sets["train"] = [
    replace(s, labels={"edema": (1, 0, -1, 1)[i]}, view=("PA", "")[i % 2], study_id="one")
    for i, s in enumerate(sets["train"])
  ]
  sets["train"][0] = replace(sets["train"][0], regions=boxed(1, 2, 30, 40), text_kind="labels")
  sets["validation"] = [replace(s, labels={}, view="PA") for s in sets["validation"]]
  tables = {table.title: table for table in check(folder(sets), workers=1, progress=False).tables}
  assert tables["split"].columns == ("train", "validation")
  assert tables["split"].rows == {
    "images": ("4", "2"),
    "studies": ("1", "2"),
    "patients": ("4", "2"),
    "with text": ("4", "2"),
    "with regions": ("1", "0"),
  }
  assert tables["text kind"].rows == {"report": ("3", "2"), "labels": ("1", "0")}
  assert tables["view"].rows == {"PA": ("2", "2"), "(none)": ("2", "0")}
  assert tables["labels: present / absent / uncertain"].rows == {
    "edema": ("2 / 1 / 1", "0 / 0 / 0")
  }
  assert tables["regions"].rows == {"nodule": ("1", "0")}


def test_skipped_images_are_counted_by_reason(tmp_path):
  (tmp_path / "raw").mkdir()
  source = image_folder(tmp_path / "raw", broken=(3, 5))
  (tmp_path / "raw" / "7.jpg").unlink()
  options = {"max_skipped_fraction": 0.5, "workers": 1, "progress": False}
  convert("folder", tmp_path / "out", source=source, **options)
  result = check(tmp_path / "out", workers=1, progress=False)
  rows = result.tables[-1].rows
  assert rows["all"] == ("3",) and rows["no such file"] == ("1",)
  assert sum(int(cell) for name, (cell,) in rows.items() if "truncated" in name) == 2
  for line in ("nonsense", "[" * 100_000, '{"reason": 5}', "[1]"):
    skipped = f'{{"path": "a", "reason": "b"}}\n{line}\n'
    (tmp_path / "out" / "skipped.jsonl").write_text(skipped)
    with pytest.raises(UserError, match=r"skipped\.jsonl, line 2: not as the converter writes it"):
      check(tmp_path / "out", workers=1, progress=False)


def images_of(page):
  for encoded in re.findall(r'src="data:image/jpeg;base64,([^"]*)"', page):
    yield cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)


def test_the_page_holds_what_the_table_says(folder, sets, tmp_path, monkeypatch, capsys):
  a, b, c, d = sets["train"]
  sets["train"] = [
    replace(a, sentences=(EVIL,), labels={EVIL: 1}, regions=boxed(30, 40, 90, 200)),
    replace(b, image=png(255 - pixels(b)), view=EVIL),
    replace(c, image=b"none", image_id=EVIL),
    d,
  ]
  sets["validation"][0] = replace(sets["validation"][0], image=a.image)
  out = tmp_path / "deep" / "page.html"
  code, text, _ = run(monkeypatch, capsys, f"--records={folder(sets)}", f"--out={out}")
  assert code == 1 and text.endswith(f"not sound\npage: {out}\n")
  page = out.read_text(encoding="utf-8")
  shown = html.unescape(re.sub(r"<[^>]*>", " ", page.split("<main>")[1]))
  folded = " ".join(shown.split())
  for line in text.splitlines()[:-2]:
    for part in filter(None, re.split(r"  +|: (?=\d+ of)", line.strip())):
      part = {"errors: 3": "Errors: 3", "warnings: 1": "Warnings: 1"}.get(part, part)
      part = re.sub("^(records|fingerprint|read in): ", "", part)
      assert " ".join(part.split()) in folded
  for name in ("identical images in two splits", "images that seem inverted"):
    assert name in folded
  # A box that leaves its image, two equal images, the inverted one; samples, but of c.
  images_shown = list(images_of(page))
  assert len(images_shown) == 1 + 2 + 1 + 5
  colourful = [bool((np.ptp(image.astype(int), axis=2) > 80).sum() > 50) for image in images_shown]
  assert colourful[0] and sum(colourful) == 3
  assert EVIL not in page and "<script" not in page and "<!--" not in page
  assert not re.search(r"https?://|src=\"(?!data:)", page)


def test_polarity_is_a_matter_of_sign():
  small = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
  assert facts.polarity(255 - small) == pytest.approx(-facts.polarity(small), abs=1e-5)
  assert facts.polarity(np.zeros((32, 32), np.uint8)) == 0


def test_an_image_is_its_size_and_pixels():
  flat = replace(example(0), image=png(np.zeros((4, 9), np.uint8)))
  turned = replace(example(0), image=png(np.zeros((9, 4), np.uint8)))
  one, two = (facts.examine(Place("f", "train", 0), s).pixel_hash for s in (flat, turned))
  assert one != two and len(one) == 16


@pytest.mark.skipif(not REAL.exists(), reason="needs the real images of cxr_mini")
def test_real_images_are_sound(tmp_path):
  convert("folder", tmp_path / "out", source=str(REAL), workers=1, progress=False)
  result = check(tmp_path / "out", workers=1, progress=False)
  assert summary(result) == {
    "studies of two patients": ("warning", 1),
    "images without text": ("warning", 202),
    "reports that repeat another": ("warning", 6),
    "images that seem inverted": ("warning", 1),  # rightly
  }
  upright = [image.polarity for image in result.images if image.image_id != "ni_2065"]
  assert min(upright) > 0.6
