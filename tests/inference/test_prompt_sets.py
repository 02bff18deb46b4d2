"""Sets of prompts of one data set ask for what its reader yields, and name what they leave out."""

import gzip
import importlib.util
import json
from pathlib import Path

import pytest

from fakes import padchest_gr as fake_padchest_gr
from fakes import vindr as fake_vindr
from input_pipeline.readers import padchest_gr, vindr
from input_pipeline.text import reports
from plan_jax.inference import prompts

WHEEL = importlib.util.find_spec("torchxrayvision")
OTHERS = {"No finding", "Other lesion", "Other diseases"}
RARE = {
  *("Clavicle fracture", "COPD", "Edema", "Emphysema", "Enlarged PA", "Lung cavity", "Lung cyst")
}
MS_CXR = {
  *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Lung Opacity", "Pleural effusion"),
  *("Pneumonia", "Pneumothorax"),
}
# The label groups of PadChest-GR's table.
GROUPS = {
  *("alveolar pattern", "aortic atheromatosis", "aortic elongation", "atelectasis"),
  *("bronchiectasis", "cardiomegaly", "central venous catheter", "electrical device"),
  *("endotracheal tube", "fracture", "goiter", "hemidiaphragm elevation", "hiatal hernia"),
  *("hyperinflated lung", "hypoexpansion", "interstitial pattern", "nodule", "nsg tube"),
  *("osteopenia", "pleural effusion", "pleural thickening", "scoliosis"),
  *("vascular hilar enlargement", "vertebral degenerative changes"),
}
LEFT_OUT = {
  "vindr": OTHERS,
  "cxr_clip_vindr": OTHERS | RARE,
  "vios_s_vindr": fake_vindr.NAMED - MS_CXR - {"ILD", "Infiltration"} | OTHERS,
}


def source_of(name):
  return json.loads((prompts.FOLDER / f"{name}.json").read_text())["source"]


def asked(chosen, labels):
  """The labels that a set has prompts for; it has prompts for nothing else."""
  assert chosen.template is None
  known = {label for label in labels if chosen.prompts(label)}
  assert set(chosen.findings) == {reports.normalise(label) for label in known}
  return known


@pytest.mark.parametrize("name", LEFT_OUT)
def test_vindr(tmp_path, name):
  source = vindr.open_source(str(fake_vindr.write_all_findings(tmp_path)))
  labels = {label for item in source.items for label, _ in item.labels}
  assert len(labels) == 28
  (chosen,) = prompts.load((name,))
  assert labels - asked(chosen, labels) == LEFT_OUT[name]
  if name == "vios_s_vindr":
    assert source_of(name).endswith("without all other findings")
  else:
    assert all(label in source_of(name) for label in LEFT_OUT[name])


@pytest.mark.skipif(WHEEL is None, reason="the label files of torchxrayvision are not there")
def test_vindr_by_kaggles_real_table(tmp_path):
  file = Path(WHEEL.submodule_search_locations[0]) / "data" / "vinbigdata-train.csv.gz"
  (tmp_path / "train.csv").write_bytes(gzip.decompress(file.read_bytes()))
  labels = {label for label, _ in vindr.open_source(str(tmp_path)).items[0].labels}
  assert len(labels) == 15
  for chosen in prompts.load(tuple(LEFT_OUT)):
    left = {label for label in labels if not chosen.prompts(label)}
    assert left == labels & LEFT_OUT[chosen.name]


def test_padchest_gr(tmp_path, monkeypatch):
  groups = [*sorted(GROUPS), "other entities"]
  findings = []
  for group in groups:
    label = f"a kind of {group}"
    monkeypatch.setitem(fake_padchest_gr.GROUPS, label, group)
    sentence = {"sentence_en": f"There is {label}.", "labels": [label]}
    findings.append(fake_padchest_gr.CARDIOMEGALY | sentence)
  fake_padchest_gr.write(tmp_path, [("a_1", "p1", "test", findings)])
  source = padchest_gr.open_source(str(tmp_path))
  (example,) = map(source.read, source.items)
  labels = {region.label for region in example.regions}
  assert labels == set(groups)
  (chosen,) = prompts.load(("conns_padchest_gr",))
  assert labels - asked(chosen, labels) == {"other entities"}
  assert "other entities, and without labels that are no group's name" in source_of(chosen.name)
  assert not any(map(chosen.prompts, example.labels))  # their own labels, which are no group's name
