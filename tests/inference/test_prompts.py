"""Sets of prompts: those in the folder, prompts of a label, and files that cannot be used."""

import json

import pytest

from fakes import vindr
from input_pipeline.phantom.radiograph import FINDINGS
from input_pipeline.readers import chestx_det10, chexpert, nih14, rsna
from plan_jax.inference import prompts


def write(path, **content):
  path.write_text(json.dumps({"source": "a test"} | content))
  return path


def test_sets_in_the_folder():
  general = ("biovil", "carzero", "chexzero", "gloria", "ours", "radzero")
  of_sets = ("radzero_chestx_det10", "radzero_rsna", "conns_padchest_gr")
  names = (*general, *of_sets, "cxr_clip_vindr", "vindr", "vios_s_vindr")
  assert sorted(path.stem for path in prompts.FOLDER.glob("*.json")) == sorted(names)
  sets = {each.name: each for each in prompts.load(names)}
  assert {name for name, each in sets.items() if each.has_negatives} == {
    "biovil",
    "chexzero",
    "cxr_clip_vindr",
    "ours",
  }
  assert len({each.fingerprint for each in sets.values()}) == len(names)
  for name, label, text in (
    ("radzero", "Pneumothorax", "There is pneumothorax"),
    ("radzero", "Opacity", "There is Lung Opacity"),
    ("radzero_chestx_det10", "Nodule", "There is Lung Nodule"),
    ("radzero_rsna", "Lung Opacity", "There is Pneumonia"),
    ("vindr", "Enlarged PA", "There is enlarged pulmonary artery."),
    ("vios_s_vindr", "ILD", "The patient has Pneumonia"),
    ("conns_padchest_gr", "nsg tube", "There is NSG tube."),
  ):
    assert sets[name].prompts(label) == prompts.Prompts((text,), ())
  assert sets["radzero_rsna"].prompts("Normal") is None
  assert sets["chexzero"].prompts("Pleural_Thickening") == prompts.Prompts(
    ("pleural thickening",), ("no pleural thickening",)
  )
  assert sets["cxr_clip_vindr"].prompts("Nodule/Mass") == prompts.Prompts(
    ("Nodule/Mass",), ("No Nodule/Mass",)
  )
  assert sets["carzero"].prompts("Nodule/Mass") == prompts.Prompts(
    ("There is nodule or mass.",), ()
  )
  for label in ("Pneumonia", "Hernia"):
    assert [len(side) for side in sets["biovil"].prompts(label)] == [4, 4]
  five = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
  assert all(len(sets["gloria"].prompts(label).positive) >= 25 for label in five)
  assert "mild interstitial edema in both lungs" in sets["gloria"].prompts("edema").positive
  assert sets["gloria"].prompts("Pneumonia") is None


def test_ours_knows_the_labels_of_every_reader():
  (ours,) = prompts.load(("ours",))
  labels = {*chexpert.LABELS, *nih14.LABELS, *chestx_det10.FINDINGS, *vindr.NAMED, *FINDINGS}
  own = labels | {rsna.FINDING, "Normal"}
  for label in own:
    said = ours.prompts(label)
    # Not by the template: a radiologist's own words.
    assert said in ours.findings.values() and min(len(said.positive), len(said.negative)) > 1
    assert not set(said.positive) & set(said.negative)
  assert ours.prompts("Effusion") == ours.prompts("Pleural effusion") == ours.prompts("effusion")
  assert ours.prompts("Scoliosis").negative[0] == "There is no scoliosis."
  for label in ("Other lesion", "Other diseases", "No Lung Opacity / Not Normal", "?"):
    assert ours.prompts(label) is None


def test_a_file_of_ones_own(tmp_path):
  path = write(
    tmp_path / "mine.json",
    findings={"a": {"positive": ["x", [["", "mild"], ["edema"], ["", "left"]]]}, "B_c": "a"},
  )
  (mine,) = prompts.load((str(path),))
  expected = ("x", "edema", "edema left", "mild edema", "mild edema left")
  assert mine.prompts("b c").positive == mine.prompts("A").positive == expected
  assert (mine.name, mine.ensemble, mine.has_negatives) == ("mine", "embeddings", False)
  assert mine.prompts("d") is None
  assert prompts.written("ILD") == "ILD" and prompts.written("Enlarged PA") == "enlarged PA"
  with pytest.raises(prompts.PromptsError, match="two sets are called 'mine'"):
    prompts.load((str(path), str(path)))
  with pytest.raises(prompts.PromptsError, match="no set 'none'; .* biovil, carzero"):
    prompts.load(("none",))
  with pytest.raises(prompts.PromptsError, match=r"absent.json cannot be read"):
    prompts.load((str(tmp_path / "absent.json"),))


ONE = {"a": {"positive": ["x"]}}


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ({}, "neither 'findings' nor a 'template'"),
    ({"source": " ", "findings": ONE}, "'source' must say"),
    ({"source": 3, "findings": ONE}, "'source' must say"),
    ({"findings": [1]}, "'findings' must be an object"),
    ({"findings": ONE, "templates": 1}, "unknown keys templates"),
    ({"findings": ONE, "ensemble": "mean"}, "'ensemble' is 'mean'"),
    ({"findings": {"a": {"negative": ["x"]}}}, "'a' must be an object with 'positive'"),
    ({"findings": {"a": {"positive": ["x"], "neg": []}}}, "'a' must be an object"),
    ({"findings": {"a": {"positive": []}}}, "'a', 'positive' must be a list of prompts, not empty"),
    ({"findings": {"a": {"positive": "x"}}}, "'a', 'positive' must be a list"),
    ({"findings": {"a": {"positive": ["x"], "negative": None}}}, "'a', 'negative' must be a list"),
    ({"findings": {"a": {"positive": [3]}}}, "3 must be a text"),
    ({"findings": {"a": {"positive": [[[]]]}}}, "must be a text, or lists"),
    ({"findings": {"a": {"positive": [" ."]}}}, "a prompt has no word"),
    ({"findings": {"a": {"positive": ["x", "x"]}}}, "'x' stands twice"),
    ({"findings": {"a": "b"}}, "'a' is the same as 'b', which has no prompts"),
    ({"findings": {"a": "b", "b": "a"}}, "'a' is the same as 'b', which has no prompts"),
    ({"findings": ONE | {"A": {"positive": ["y"]}}}, "'A' has no name, or one that stands"),
    ({"findings": ONE | {"b": {"positive": ["y"], "negative": ["n"]}}}, "do not compare"),
    ({"template": {"positive": ["x"]}}, r"each prompt must hold \{\}"),
  ],
)
def test_files_that_cannot_be_used(tmp_path, content, words):
  with pytest.raises(prompts.PromptsError, match=f"bad.json: .*{words}"):
    prompts.read(write(tmp_path / "bad.json", **content))


def test_files_that_are_no_such_json(tmp_path):
  path = tmp_path / "bad.json"
  for raw, words in (
    (b"[]", "must be a JSON object"),
    (b"{", "cannot be read"),
    (b"\xff", "cannot be read"),
    (b'{"source": "a", "source": "b"}', "the key 'source' stands twice"),
  ):
    path.write_bytes(raw)
    with pytest.raises(prompts.PromptsError, match=words):
      prompts.read(path)
