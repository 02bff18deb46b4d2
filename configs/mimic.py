"""The main job: MIMIC-CXR, full size, evaluated on the data sets of the field.

  python -m plan_jax.main --config=configs/mimic.py --config.data.source=/data/physionet \
    --config.model.text.weights=/models/Bio_ClinicalBERT --workdir=runs/mimic

`configs/mimic.py:vit,512` chooses a variant: "resnet50" (default) or "vit" (ViT-B/16), 224 pixels
(default) or 512. "frozen", which names no size, learns two transformer layers on an encoder that is
not trained, whose folder --config.model.image.weights names (docs/weights.md, "RAD-DINO"), at the
encoder's own size.
`/data/physionet` holds mimic-cxr-jpg, mimic-cxr and, for grounding, ms-cxr.
`--config.runlocal=True` tries the whole way on a few images with small encoders.
"""

from ml_collections import ConfigDict

from configs import base, frozen, variants


def get_config(variant: str = "") -> ConfigDict:
  """The configuration of a variant: names with "," between."""
  encoder, image_px = variants.parse(
    "mimic.py", variant, ("resnet50", "vit", "frozen"), ("224", "512")
  )
  if encoder == "frozen" and "," in variant:
    raise ValueError(
      f"variant {variant!r} of mimic.py: frozen and {image_px} exclude each other: images are of"
      " the encoder's own size, or of --config.model.image_px"
    )
  config = base.get_config()
  config.data.dataset = "mimic_cxr"
  config.data.options = ConfigDict(dict(views="frontal", labels="chexpert", ms_cxr="exclude"))
  config.data.selection = "without_5x200"  # whose images are drawn from the training split
  if encoder == "vit":
    config.model.image.name = "vit"
  if encoder == "frozen":
    frozen.freeze(config)
    config.model.image.adapter = 2
    config.model.remat = "blocks"  # 256 images of 1,369 pixels; a frozen block is not run again
  config.checkpoint.best_metric = "validation/retrieval/R@5_image-to-text"
  attach(config)
  if image_px == "512":
    config.model.image_px = 512
    config.train.micro_batches = 4
    config.model.remat = "blocks"
    for name in ("rsna_detection", "object_cxr_detection", "siim_segmentation"):
      config.evaluation.transfer[name].flags.image_px = 512
  return config


def attach(config: ConfigDict) -> None:
  """The evaluation sets of the field; those of PhysioNet's MIMIC lie in the run's own source."""
  sets = config.evaluation.sets
  sets.ms_cxr = base.evaluation_set("ms_cxr", selection="all_test")
  sets.mimic_5x200 = base.evaluation_set("mimic_cxr", selection="5x200", ms_cxr="keep")
  for name in ("ms_cxr", "mimic_5x200"):
    sets[name].source = config.data.get_oneway_ref("source")
  attach_others(config)


def attach_others(config: ConfigDict) -> None:
  """The evaluation sets beside MIMIC; each waits for its source."""
  sets = config.evaluation.sets
  sets.chexpert_5x200 = base.evaluation_set("chexpert", selection="5x200")
  sets.rsna = base.evaluation_set("rsna", selection="rsna_detection")
  sets.siim = base.evaluation_set("siim", selection="siim_images")
  for name in ("nih14", "vindr", "padchest_gr", "openi", "object_cxr", "chestx_det10"):
    sets[name] = base.evaluation_set(name)
  tasks = config.evaluation.transfer
  tasks.rsna_detection = base.transfer_task("detection", of="rsna", compatibility=True)
  tasks.object_cxr_detection = base.transfer_task("detection", of="object_cxr", compatibility=True)
  tasks.siim_segmentation = base.transfer_task("segmentation", of="siim", image_px=224)
  tasks.nih14_probe = base.transfer_task("linear_probe", of="nih14")
