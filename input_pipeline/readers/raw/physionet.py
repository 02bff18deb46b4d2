"""Places in a PhysioNet download: the projects of MIMIC-CXR and those about its images."""

from pathlib import Path

from input_pipeline.readers.raw import folders

_PARENTS = ("", "physionet.org/files/")  # the second as "wget -r" makes it


def has(root: Path, project: str) -> bool:
  """Tells whether the download holds a project."""
  return any((root / parent / project).is_dir() for parent in _PARENTS)


def find(root: Path, project: str, *names: str) -> Path:
  """Finds the first of a project's files or folders that exists, links resolved.

  It stands in PROJECT or in a folder of it, such as a version's; PROJECT stands in the root or in
  physionet.org/files. A name may hold "*", which must then match one path. Projects, and the
  folders named here, may be links to other disks. Raises SourceError.
  """
  places = [
    f"{parent}{project}/{version}{name}"
    for name in names
    for parent in _PARENTS
    for version in ("", "*/")
  ]
  return folders.find(root, *places, hint=f"physionet.org/content/{project} has it").resolve()


def stem(patient_id: str, study_id: str) -> str:
  """Returns the common part of a study's paths: p10/p10000032/s50414267."""
  return f"p{patient_id[:2]}/p{patient_id}/s{study_id}"
