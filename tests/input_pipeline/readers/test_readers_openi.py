import importlib.util
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes import openi as fake
from fakes.images import by_id, converted
from input_pipeline.readers import openi
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import Listing, check_patients

WHEEL = importlib.util.find_spec("torchxrayvision")


def test_examples(tmp_path):
  summary, examples = converted("openi", fake.write(tmp_path / "raw"), tmp_path / "out")
  images = by_id(examples)
  assert len(images) == 5
  normal = images["CXR1_1_IM-0001-3001"]
  assert (normal.patient_id, normal.study_id, normal.view) == ("CXR1", "CXR1", "")
  assert set(normal.sections) == {"comparison", "indication", "findings", "impression"}
  assert normal.sentences == (
    "The heart is normal.",
    "There is no XXXX of a pleural effusion.",
    "Normal chest x-XXXX.",
  )
  assert normal.labels == {"normal": 1}
  cardiomegaly = images["CXR2_IM-0652-2001-0001"]
  assert cardiomegaly.sentences == ("Cardiomegaly < prior.", "Left base opacity.")
  assert cardiomegaly.labels == {"Cardiomegaly": 1, "Opacity": 1, "cardiomegaly": 1}
  # Neither findings nor impression: the indication is no description of the image.
  silent = images["CXR10_IM-0002-1001"]
  assert (silent.sentences, silent.labels) == ((), {})
  assert silent.sections == {"comparison": "None.", "indication": "Cough."}
  assert summary["notes"][1:] == [
    "reports without an image: 1 of 4",
    "reports without findings and impression: 1 of 4; their images have no text",
    "reports with XXXX in them: 1 of 4",
    "no indiana_projections.csv: views are unknown, laterals are among the images",
  ]


def test_archive_and_folder_list_the_same(tmp_path):
  folder = openi.open_source(str(fake.write(tmp_path / "a")))
  archive = openi.open_source(str(fake.write(tmp_path / "b", archive=True)))
  assert folder.items == archive.items
  assert [item.key for item in folder.items][-1] == "CXR10_IM-0002-1001 (10.xml)"  # by number


def test_images_in_their_three_forms(tmp_path):
  png, dcm, kaggle = (
    openi.open_source(str(fake.write(tmp_path / images, images=images)))
    for images in ("png", "dcm", "kaggle")
  )
  for a, b, c in zip(png.items, dcm.items, kaggle.items, strict=True):
    assert png.read(a).image == kaggle.read(c).image
    example = dcm.read(b)
    assert (example.width, example.height) == (png.read(a).width, png.read(a).height)
    assert example.sentences == png.read(a).sentences
  pixels = np.asarray(Image.open(io.BytesIO(example.image)))
  assert (pixels[0, 0], pixels[-1, -1]) == (255, 0)  # MONOCHROME1, turned


def test_views(tmp_path):
  source = openi.open_source(str(fake.write(tmp_path, projections=True)))
  assert [item.view for item in source.items] == ["LATERAL", "FRONTAL", "FRONTAL", "LATERAL", ""]
  source = openi.open_source(str(tmp_path), views="frontal")
  assert tuple(item.image_id for item in source.items) == fake.FRONTAL
  assert "views left aside that are not frontal: 3 of 5" in source.notes
  (tmp_path / "indiana_projections.csv").unlink()
  with pytest.raises(SourceError, match="views='frontal' needs indiana_projections.csv"):
    openi.open_source(str(tmp_path), views="frontal")


def test_damaged_reports_are_left_out(tmp_path):
  fake.write(tmp_path)
  folder = tmp_path / "ecgen-radiology"
  (folder / "1.xml").write_bytes((folder / "1.xml").read_bytes()[:200])
  (folder / "3.xml").write_bytes(b"<eCitation/>")
  (folder / "4.xml").write_bytes(fake.xml(4, findings="", impression="", images=[""]))
  (folder / "5.xml").symlink_to(__file__)
  source = openi.open_source(str(tmp_path))
  assert len(source.items) == 3
  assert [name for name, _ in source.left_out] == ["1.xml", "3.xml", "4.xml", "5.xml"]
  reasons = " ".join(reason for _, reason in source.left_out)
  for words in ("not a report: unclosed token", "no uId", "has no id", "leads out of"):
    assert words in reasons


def test_what_cannot_be_a_collection(tmp_path):
  with pytest.raises(SourceError, match="no NLMCXR_reports.tgz; or unpack it: ecgen-radiology"):
    openi.open_source(str(tmp_path))
  fake.write(tmp_path, archive=True)
  archive = tmp_path / "NLMCXR_reports.tgz"
  archive.write_bytes(archive.read_bytes()[:300])
  with pytest.raises(SourceError, match="cannot be read to its end .* download it again"):
    openi.open_source(str(tmp_path))
  archive.write_bytes(b"no archive")
  with pytest.raises(SourceError, match="cannot be read to its end"):
    openi.open_source(str(tmp_path))
  fake.write(tmp_path / "b")
  folder = tmp_path / "b" / "ecgen-radiology"
  shutil.copy(folder / "1.xml", folder / "12.xml")
  with pytest.raises(SourceError, match="1.xml and 12.xml have the uId CXR1"):
    openi.open_source(str(tmp_path / "b"))
  (folder / "12.xml").write_bytes(fake.xml(12, **fake.REPORTS[1]))
  with pytest.raises(SourceError, match=r"\(12.xml\) is an image of .* \(1.xml\) too"):
    openi.open_source(str(tmp_path / "b"))
  nothing = {11: fake.REPORTS[11]}
  with pytest.raises(SourceError, match="the reports name no image"):
    openi.open_source(str(fake.write(tmp_path / "c", reports=nothing)))


@pytest.mark.skipif(WHEEL is None, reason="the real reports are not here")
def test_the_real_reports(tmp_path):
  data = Path(WHEEL.submodule_search_locations[0]) / "data"
  shutil.copy(data / "NLMCXR_reports.tgz", tmp_path)
  source = openi.open_source(str(tmp_path))
  assert (len(source.items), source.left_out) == (7470, ())
  check_patients(source.items)
  assert "reports without an image: 104 of 3955" in source.notes
  assert "reports without findings and impression: 28 of 3955; their images have no text" in (
    source.notes
  )
  reports = {item.patient_id: dict(item.row.sections) for item in source.items}
  assert len(reports) == 3955 - 104
  # All 3,955, with the 104 that have no image: 3,425 have findings, 3,921 an impression.
  every = [report for _, report in openi._reports(tmp_path, Listing())]
  names = [{name for name, _ in report.sections} for report in every]
  assert sum("findings" in each for each in names) == 3425
  assert sum("impression" in each for each in names) == 3921


def test_the_findings_of_carzero(tmp_path):
  """Words within automatic terms, without case; the terms by hand do not count."""
  reports = {
    1: dict(findings="", impression="", major=["Hernia"], images=["CXR1_1_IM-0001-3001"]),
    2: dict(
      findings="",
      impression="",
      automatic=["Infiltrates", "calcified granuloma", "opacity of lung"],
      images=["CXR2_IM-0652-1001"],
    ),
  }
  source = openi.open_source(str(fake.write(tmp_path, reports=reports)), labels="carzero")
  first, second = (dict(item.labels) for item in source.items)
  assert list(first) == list(openi.CARZERO) and len(first) == 18 and not any(first.values())
  present = {name for name, value in second.items() if value}
  assert present == {"Infiltration", "Calcified Granuloma", "Granuloma", "Opacity"}
