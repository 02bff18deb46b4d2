import dataclasses
import functools

import cv2
import numpy as np
import pytest

from input_pipeline import example as example_lib
from input_pipeline.phantom import radiograph
from input_pipeline.phantom import reports as phantom_reports
from input_pipeline.phantom.anatomy import LEFT, RIGHT
from input_pipeline.phantom.findings import LOWER, UPPER
from input_pipeline.text import reports

SEED = 7


@functools.cache
def images():
  return tuple(radiograph.example(SEED, index, 64) for index in range(240))


def decode(data):
  return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def same(a, b):
  return (
    a.image == b.image
    and [region.mask for region in a.regions] == [region.mask for region in b.regions]
    and all(np.array_equal(x.boxes, y.boxes) for x, y in zip(a.regions, b.regions, strict=True))
  )


def test_same_bytes_in_any_order_and_number_of_threads():
  forward = [radiograph.example(3, index) for index in range(6)]
  threads = cv2.getNumThreads()
  cv2.setNumThreads(1)
  backward = [radiograph.example(3, index) for index in reversed(range(6))][::-1]
  cv2.setNumThreads(threads)
  for a, b in zip(forward, backward, strict=True):
    assert same(a, b)
    assert (a.sections, a.sentences, a.labels) == (b.sections, b.sentences, b.labels)
  assert forward[0].image != radiograph.example(4, 0).image
  assert len({example.image for example in forward}) == 6


@pytest.mark.parametrize("size_px", [64, 128])
def test_examples_hold_together(size_px):
  for index in range(60):
    example = images()[index] if size_px == 64 else radiograph.example(SEED, index, size_px)
    example_lib.check(example)
    image = decode(example.image)
    assert image.shape == (size_px, size_px) and image.dtype == np.uint8
    assert image.std() > 30
    assert [r.label for r in example.regions] == [n for n, v in example.labels.items() if v != 0]
    for region in example.regions:
      assert set(np.unique(decode(region.mask))) == {0, 255}


def test_ids_and_patients():
  examples = images()
  assert len({example.image_id for example in examples}) == len(examples)
  assert all(example.patient_id == radiograph.patient(i) for i, example in enumerate(examples))
  assert len({radiograph.patient(i) for i in range(radiograph.IMAGES_PER_PATIENT)}) == 1
  assert radiograph.patient(radiograph.IMAGES_PER_PATIENT - 1) != radiograph.patient(
    radiograph.IMAGES_PER_PATIENT
  )


def test_boxes_are_tight_on_masks():
  pairs = 0
  for example in images():
    for region in example.regions:
      mask = decode(region.mask) > 0
      covered = np.zeros_like(mask)
      for x0, y0, x1, y1 in region.boxes.astype(int):
        covered[y0:y1, x0:x1] = True
        part = mask[y0:y1, x0:x1]
        assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()
      assert covered[mask].all()
      assert len(region.boxes) <= 2
      pairs += len(region.boxes) == 2
      if len(region.boxes) == 2:
        assert region.label in ("effusion", "edema")
        assert region.boxes[0, 0] < region.boxes[1, 0]
  assert pairs > 10


@pytest.mark.parametrize("size_px", [64, 128])
def test_mask_is_where_the_image_changes_without_the_finding(size_px):
  drawn = set()
  for index in range(60):
    plan = radiograph.plan(SEED, index)
    image = radiograph.render(plan, size_px)
    for i, finding in enumerate(plan.findings):
      others = plan.findings[:i] + plan.findings[i + 1 :]
      bare = radiograph.render(dataclasses.replace(plan, findings=others), size_px)
      change = np.abs(image.grey - bare.grey)
      mask = image.masks[i]
      drawn.add(finding.name)
      if finding.name == "cardiomegaly":
        # The heart grew: what changed most lies within it, and it holds more than the change.
        strong = change > 0.5 * change.max()
        assert mask[strong].mean() > 0.9 and mask.sum() > strong.sum()
        continue
      np.testing.assert_array_equal(mask, change >= max(3, 0.2 * change.max()))
      assert change.max() > 8, (index, finding.name)
      # The image as stored, noise and all, is the same outside.
      stored = np.abs(image.pixels.astype(int) - bare.pixels)
      assert stored[~mask].max() <= max(3, 0.2 * change.max()) + 1
  assert drawn == set(radiograph.FINDINGS)


def test_sides_and_zones_are_where_the_words_say():
  sides = zones = 0
  for index in range(240):
    plan = radiograph.plan(SEED, index)
    image, example = radiograph.render(plan, 64), images()[index]
    for finding, mask, region in zip(plan.findings, image.masks, example.regions, strict=True):
      phrase = region.phrase.split()
      assert not {"left", "right"} <= set(phrase)
      share = image.right[mask].mean()
      if "right" in phrase or "left" in phrase:
        sides += 1
        assert (share > 0.5) == ("right" in phrase), (index, region.phrase)
      if "bilateral" in phrase or "both" in phrase:
        assert 0.1 < share < 0.9
      if finding.zone in (UPPER, LOWER) and finding.name != "pacemaker":
        height = np.nonzero(mask)[0].mean() / 64
        zones += 1
        assert height < 0.5 if finding.zone == UPPER else height > 0.5, (index, region.phrase)
  assert sides > 100 and zones > 80


def test_left_of_the_image_is_the_patients_right():
  plan = radiograph.plan(SEED, 0)
  image = radiograph.render(plan, 64)
  assert image.right[32, 2] and not image.right[32, -3]
  heart = next(
    mask
    for index in range(200)
    for finding, mask in zip(
      radiograph.plan(SEED, index).findings,
      radiograph.render(radiograph.plan(SEED, index), 64).masks,
      strict=True,
    )
    if finding.name == "cardiomegaly"
  )
  assert np.nonzero(heart)[1].mean() > 32  # the apex points to the image's right


def test_findings_do_not_hide_each_other():
  for index in range(300):
    plan = radiograph.plan(SEED, index)
    local = ("consolidation", "nodule", "mass", "atelectasis", "fracture")
    spots = [(f.side, f.zone) for f in plan.findings if f.name in local]
    assert len(set(spots)) == len(spots)
    for finding in plan.findings:
      assert finding.side in (RIGHT, LEFT) or finding.name in (
        *("effusion", "cardiomegaly", "edema", "tube", "hernia"),
      )


def test_reports_survive_the_parser():
  for example in images():
    text = "\n".join(f"{name.upper()}: {part}" for name, part in example.sections.items())
    parts = reports.sections(text)
    assert parts == example.sections
    assert tuple(reports.report_sentences(parts)) == example.sentences
  plan = radiograph.plan(SEED, 1)
  report = phantom_reports.write(np.random.default_rng(0), plan.findings, plan.view)
  for sentences in report.sections.values():
    assert reports.sentences(" ".join(sentences)) == sentences


def test_length_of_reports():
  counts = [sum(len(reports.words(s)) for s in example.sentences) for example in images()]
  assert max(counts) <= phantom_reports.MAX_WORDS
  assert np.percentile(counts, 5) >= 20 and np.percentile(counts, 95) <= 56
  assert all(3 <= len(example.sentences) <= 9 for example in images())


def test_reports_name_the_findings_and_deny_only_absent_ones():
  hedged = denied = 0
  for index, example in enumerate(images()):
    findings = radiograph.plan(SEED, index).findings
    text = example.sections["findings"].lower()
    for finding, region in zip(findings, example.regions, strict=True):
      assert region.phrase.lower() in text
      sentence = next(s for s in example.sentences if region.phrase.lower() in s.lower())
      doubtful = any(word in sentence.lower().split() for word in ("possible", "questionable"))
      doubtful |= any(word in sentence for word in ("may", "cannot", "suspicious"))
      assert doubtful == finding.hedged
      assert example.labels[finding.name] == (-1 if finding.hedged else 1)
      hedged += finding.hedged
    absent = {name for name, value in example.labels.items() if value == 0}
    assert not absent & {finding.name for finding in findings}
    denied += len(absent)
    for name in absent & {"effusion", "nodule", "edema", "fracture", "hernia"}:
      words = {"effusion": ("effusion", "pleural fluid"), "edema": ("edema", "congestion")}
      naming = [s for s in example.sentences if any(w in s for w in words.get(name, (name,)))]
      assert naming and all(s.startswith(("No ", "There is no ")) for s in naming)
    if "The lungs are clear." in example.sentences:
      assert not {"consolidation", "nodule", "mass", "edema", "effusion"} & {
        finding.name for finding in findings
      }
  assert hedged > 15 and denied > 200


def test_many_findings_and_many_normal_images():
  plans = [radiograph.plan(SEED, index) for index in range(2000)]
  names = [finding.name for plan in plans for finding in plan.findings]
  counts = {name: names.count(name) for name in radiograph.FINDINGS}
  assert len(radiograph.FINDINGS) >= 10 and min(counts.values()) >= 150, counts
  empty = np.mean([not plan.findings for plan in plans])
  assert 0.2 < empty < 0.3
  assert max(len(plan.findings) for plan in plans) == 4
  assert all(len({f.name for f in plan.findings}) == len(plan.findings) for plan in plans)


def test_normal_reports_repeat():
  normal = [reports.normalise(" ".join(s.sentences)) for s in images() if not s.regions]
  assert len(set(normal)) < 0.7 * len(normal)
  assert len(set(normal)) > 3


def test_text_options_leave_image_and_truth():
  changed = {"wrong_sentence_fraction": 0, "swapped_side_fraction": 0}
  for index in range(60):
    clean = images()[index]
    for option in changed:
      spoilt = radiograph.example(SEED, index, 64, **{option: 1.0})
      example_lib.check(spoilt)
      assert same(clean, spoilt) and clean.labels == spoilt.labels
      assert [r.phrase for r in clean.regions] == [r.phrase for r in spoilt.regions]
      before, after = clean.sections, spoilt.sections
      lines = [set(reports.sentences(" ".join(x.values()))) for x in (before, after)]
      assert len(lines[0] - lines[1]) <= 1 and len(lines[1] - lines[0]) <= 1
      changed[option] += before != after
      if option == "swapped_side_fraction":
        assert (before != after) == any(
          {"left", "right"} & set(reports.normalise(s).split()) for s in before.values()
        )
  assert changed["wrong_sentence_fraction"] == 60
  assert changed["swapped_side_fraction"] > 20


def test_share_of_wrong_sentences_is_as_asked():
  wrong = [radiograph.example(SEED, i, 64, wrong_sentence_fraction=0.3) for i in range(240)]
  share = np.mean([a.sections != b.sections for a, b in zip(wrong, images(), strict=True)])
  assert 0.2 < share < 0.4


def test_small_only():
  def area(examples):
    return np.median([(decode(r.mask) > 0).mean() for s in examples for r in s.regions])

  small = [radiograph.example(SEED, index, 64, small_only=True) for index in range(100)]
  assert area(small) < 0.5 * area(images())
  large = {"large", "moderate", "larger", "bulky", "marked", "extensive", "long"}
  assert not large & {word for s in small for r in s.regions for word in r.phrase.split()}


@pytest.mark.parametrize("size_px", [64, 100, 512])
def test_any_size_is_the_same_image(size_px):
  for index in range(6):
    small, other = images()[index], radiograph.example(SEED, index, size_px)
    example_lib.check(other)
    assert (small.sections, small.labels) == (other.sections, other.labels)
    shrunk = cv2.resize(decode(other.image), (64, 64), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(shrunk.ravel(), decode(small.image).ravel())[0, 1] > 0.96


@pytest.mark.parametrize("size_px", [63, 513])
def test_size_out_of_range(size_px):
  with pytest.raises(ValueError, match="size_px"):
    radiograph.example(0, 0, size_px)


@pytest.mark.parametrize(
  "sentence, kinds",
  [
    ("There is a small left pleural effusion.", "o o o a a f f"),
    ("No pleural effusion or pneumothorax.", "o o o o o"),
    ("The heart size is normal.", "o o o o o"),
    ("Mild enlargement of the heart is seen.", "a f o o f o o"),
    ("Possible nodule in the right upper zone.", "o f o o a a a"),
    ("Single frontal view of the chest was obtained.", "o o o o o o o o"),
  ],
)
def test_word_kinds(sentence, kinds):
  names = {"f": "finding", "a": "attribute", "o": "other"}
  assert phantom_reports.word_kinds(sentence) == [names[kind] for kind in kinds.split()]


def test_word_kinds_of_whole_reports():
  for example in images():
    for region in example.regions:
      assert "finding" in phantom_reports.word_kinds(region.phrase), region.phrase
    kinds = [phantom_reports.word_kinds(sentence) for sentence in example.sentences]
    for sentence, row in zip(example.sentences, kinds, strict=True):
      assert len(row) == len(reports.words(sentence))
    assert any("finding" in row for row in kinds) == bool(example.regions)
