import dataclasses
import functools

import cv2
import numpy as np
import pytest

from input_pipeline import phantom, phantom_reports, reports
from input_pipeline import study as study_lib
from input_pipeline.phantom_anatomy import LEFT, RIGHT
from input_pipeline.phantom_findings import LOWER, UPPER

SEED = 7


@functools.cache
def films(count=240, size_px=64):
  return tuple(phantom.study(SEED, index, size_px) for index in range(count))


def decode(data):
  return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def same(a, b):
  return (
    a.image == b.image
    and [region.mask for region in a.regions] == [region.mask for region in b.regions]
    and all(np.array_equal(x.boxes, y.boxes) for x, y in zip(a.regions, b.regions, strict=True))
  )


def test_same_bytes_in_any_order_and_number_of_threads():
  forward = [phantom.study(3, index) for index in range(6)]
  threads = cv2.getNumThreads()
  cv2.setNumThreads(1)
  backward = [phantom.study(3, index) for index in reversed(range(6))][::-1]
  cv2.setNumThreads(threads)
  for a, b in zip(forward, backward, strict=True):
    assert same(a, b)
    assert (a.sections, a.sentences, a.labels) == (b.sections, b.sentences, b.labels)
  assert forward[0].image != phantom.study(4, 0).image
  assert len({study.image for study in forward}) == 6


@pytest.mark.parametrize("size_px", [64, 128])
def test_studies_hold_together(size_px):
  for study in films(240, size_px) if size_px == 64 else films(60, size_px):
    study_lib.check(study)
    image = decode(study.image)
    assert image.shape == (size_px, size_px) and image.dtype == np.uint8
    assert image.std() > 30
    assert [r.label for r in study.regions] == [n for n, v in study.labels.items() if v != 0]
    for region in study.regions:
      assert set(np.unique(decode(region.mask))) == {0, 255}


def test_ids_and_patients():
  studies = films()
  assert len({study.image_id for study in studies}) == len(studies)
  assert all(study.patient_id == phantom.patient(i) for i, study in enumerate(studies))
  assert len({phantom.patient(i) for i in range(phantom.FILMS_PER_PATIENT)}) == 1
  assert phantom.patient(phantom.FILMS_PER_PATIENT - 1) != phantom.patient(
    phantom.FILMS_PER_PATIENT
  )


def test_boxes_are_tight_on_masks():
  pairs = 0
  for study in films():
    for region in study.regions:
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
def test_mask_is_where_the_film_changes_without_the_finding(size_px):
  seen = set()
  for index in range(80):
    plan = phantom.plan(SEED, index)
    film = phantom.render(plan, size_px)
    for i, finding in enumerate(plan.findings):
      others = plan.findings[:i] + plan.findings[i + 1 :]
      bare = phantom.render(dataclasses.replace(plan, findings=others), size_px)
      change = np.abs(film.grey - bare.grey)
      mask = film.masks[i]
      seen.add(finding.name)
      if finding.name == "cardiomegaly":
        # The heart grew: what changed most lies within it, and it holds more than the change.
        strong = change > 0.5 * change.max()
        assert mask[strong].mean() > 0.9 and mask.sum() > strong.sum()
        continue
      np.testing.assert_array_equal(mask, change >= max(3, 0.2 * change.max()))
      assert change.max() > 8, (index, finding.name)
      # The film as stored, noise and all, is the same outside.
      stored = np.abs(film.pixels.astype(int) - bare.pixels)
      assert stored[~mask].max() <= max(3, 0.2 * change.max()) + 1
  assert seen == set(phantom.FINDINGS)


def test_sides_and_zones_are_where_the_words_say():
  sides = zones = 0
  for index in range(240):
    plan = phantom.plan(SEED, index)
    film, study = phantom.render(plan, 64), films()[index]
    for finding, mask, region in zip(plan.findings, film.masks, study.regions, strict=True):
      phrase = region.phrase.split()
      assert not {"left", "right"} <= set(phrase)
      share = film.right[mask].mean()
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


def test_left_of_the_picture_is_the_patients_right():
  plan = phantom.plan(SEED, 0)
  film = phantom.render(plan, 64)
  assert film.right[32, 2] and not film.right[32, -3]
  heart = next(
    mask
    for index in range(200)
    for finding, mask in zip(
      phantom.plan(SEED, index).findings,
      phantom.render(phantom.plan(SEED, index), 64).masks,
      strict=True,
    )
    if finding.name == "cardiomegaly"
  )
  assert np.nonzero(heart)[1].mean() > 32  # the apex points to the picture's right


def test_findings_do_not_hide_each_other():
  for index in range(300):
    plan = phantom.plan(SEED, index)
    local = ("consolidation", "nodule", "mass", "atelectasis", "fracture")
    spots = [(f.side, f.zone) for f in plan.findings if f.name in local]
    assert len(set(spots)) == len(spots)
    for finding in plan.findings:
      assert finding.side in (RIGHT, LEFT) or finding.name in (
        *("effusion", "cardiomegaly", "edema", "tube", "hernia"),
      )


def test_reports_survive_the_parser():
  for study in films():
    text = "\n".join(f"{name.upper()}: {part}" for name, part in study.sections.items())
    parts = reports.sections(text)
    assert parts == study.sections
    assert tuple(reports.report_sentences(parts)) == study.sentences
  plan = phantom.plan(SEED, 1)
  report = phantom_reports.write(np.random.default_rng(0), plan.findings, plan.view)
  for sentences in report.sections.values():
    assert reports.sentences(" ".join(sentences)) == sentences


def test_length_of_reports():
  counts = [sum(len(reports.words(s)) for s in study.sentences) for study in films()]
  assert max(counts) <= phantom_reports.MAX_WORDS
  assert np.percentile(counts, 5) >= 20 and np.percentile(counts, 95) <= 56
  assert all(3 <= len(study.sentences) <= 9 for study in films())


def test_reports_name_what_is_there_and_deny_only_what_is_not():
  hedged = denied = 0
  for index, study in enumerate(films()):
    findings = phantom.plan(SEED, index).findings
    text = study.sections["findings"].lower()
    for finding, region in zip(findings, study.regions, strict=True):
      assert region.phrase.lower() in text
      sentence = next(s for s in study.sentences if region.phrase.lower() in s.lower())
      doubtful = any(word in sentence.lower().split() for word in ("possible", "questionable"))
      doubtful |= any(word in sentence for word in ("may", "cannot", "suspicious"))
      assert doubtful == finding.hedged
      assert study.labels[finding.name] == (-1 if finding.hedged else 1)
      hedged += finding.hedged
    absent = {name for name, value in study.labels.items() if value == 0}
    assert not absent & {finding.name for finding in findings}
    denied += len(absent)
    for name in absent & {"effusion", "nodule", "edema", "fracture", "hernia"}:
      words = {"effusion": ("effusion", "pleural fluid"), "edema": ("edema", "congestion")}
      told = [s for s in study.sentences if any(w in s for w in words.get(name, (name,)))]
      assert told and all(s.startswith(("No ", "There is no ")) for s in told)
    if "The lungs are clear." in study.sentences:
      assert not {"consolidation", "nodule", "mass", "edema", "effusion"} & {
        finding.name for finding in findings
      }
  assert hedged > 15 and denied > 200


def test_many_findings_and_many_normal_films():
  plans = [phantom.plan(SEED, index) for index in range(2000)]
  names = [finding.name for plan in plans for finding in plan.findings]
  counts = {name: names.count(name) for name in phantom.FINDINGS}
  assert len(phantom.FINDINGS) >= 10 and min(counts.values()) >= 150, counts
  empty = np.mean([not plan.findings for plan in plans])
  assert 0.2 < empty < 0.3
  assert max(len(plan.findings) for plan in plans) == 4
  assert all(len({f.name for f in plan.findings}) == len(plan.findings) for plan in plans)


def test_normal_reports_repeat():
  normal = [reports.normalise(" ".join(s.sentences)) for s in films() if not s.regions]
  assert len(set(normal)) < 0.7 * len(normal)
  assert len(set(normal)) > 3


def test_text_options_leave_film_and_truth():
  changed = {"wrong_sentence_fraction": 0, "swapped_side_fraction": 0}
  for index in range(60):
    clean = films()[index]
    for option in changed:
      spoilt = phantom.study(SEED, index, 64, **{option: 1.0})
      study_lib.check(spoilt)
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
  wrong = [phantom.study(SEED, i, 64, wrong_sentence_fraction=0.3) for i in range(240)]
  share = np.mean([a.sections != b.sections for a, b in zip(wrong, films(), strict=True)])
  assert 0.2 < share < 0.4


def test_small_only():
  def area(studies):
    return np.median([(decode(r.mask) > 0).mean() for s in studies for r in s.regions])

  small = [phantom.study(SEED, index, 64, small_only=True) for index in range(100)]
  assert area(small) < 0.5 * area(films())
  large = {"large", "moderate", "larger", "bulky", "marked", "extensive", "long"}
  assert not large & {word for s in small for r in s.regions for word in r.phrase.split()}


@pytest.mark.parametrize("size_px", [64, 100, 512])
def test_any_size_is_the_same_film(size_px):
  for index in range(6):
    small, other = films(240, 64)[index], phantom.study(SEED, index, size_px)
    study_lib.check(other)
    assert (small.sections, small.labels) == (other.sections, other.labels)
    shrunk = cv2.resize(decode(other.image), (64, 64), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(shrunk.ravel(), decode(small.image).ravel())[0, 1] > 0.96


@pytest.mark.parametrize("size_px", [63, 513])
def test_size_out_of_range(size_px):
  with pytest.raises(ValueError, match="size_px"):
    phantom.study(0, 0, size_px)


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
  for study in films():
    for region in study.regions:
      assert "finding" in phantom_reports.word_kinds(region.phrase), region.phrase
    kinds = [phantom_reports.word_kinds(sentence) for sentence in study.sentences]
    for sentence, row in zip(study.sentences, kinds, strict=True):
      assert len(row) == len(reports.words(sentence))
    assert any("finding" in row for row in kinds) == bool(study.regions)
