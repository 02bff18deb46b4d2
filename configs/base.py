"""Every key there is, with the defaults of a full-size run; the other configs override it."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The full-size configuration."""
  return ConfigDict(
    dict(
      seed=0,
      runlocal=False,  # tries the whole way: few images, steps, parameters (configs/local.py)
      data=_data(),
      text=_text(),
      model=_model(),
      alignment=_alignment(),
      curriculum=_curriculum(),
      train=_train(),
      checkpoint=_checkpoint(),
      evaluation=_evaluation(),
      mesh=dict(data=-1, fsdp=1),
    )
  )


def _data() -> dict:
  return dict(
    dataset="folder",  # a reader of input_pipeline/readers
    source="",  # the raw folder
    records="",  # where the shards are or go; empty: WORKDIR/records
    stored_px=512,  # bound on the short side of a stored image
    max_decoded_px=64_000_000,  # larger images are left out; decoding takes 10 bytes a pixel
    limit=0,  # images of each split; 0: all
    max_skipped_fraction=0.01,  # more unreadable images than this stop the conversion
    options={},  # the reader's own
    selection="",  # images: a name of input_pipeline/conversion/selections.py, or a .json file
    selection_seed=0,
    store_features=False,  # encodes each image once, for a frozen encoder; see docs/data.md
    features="",  # where they are or go; empty: WORKDIR/features
    augment=True,
    flip_fraction=0.0,  # of the images, mirrored with "left" and "right" exchanged in their reports
    workers=0,  # decoding processes; 0: threads only
    threads=2,
  )


def _text() -> dict:
  return dict(
    tokenizer="",  # a local Hugging Face folder; empty: trained on the training reports
    vocabulary_size=8192,  # of a trained tokenizer
    terms="",  # diagnostic terms, a file; empty: input_pipeline/text/diagnostic_terms.txt
    places=False,  # whether words of place ("left", "upper") are terms beside a finding
    max_tokens=192,
    max_words=96,
    concise_fraction=0.0,  # of the sentences in training, cut to their diagnostic terms
  )


def _model() -> dict:
  return dict(
    image_px=224,
    embed_dim=128,  # width of the shared space
    scale_init=10.0,  # inverse temperatures of the contrasts
    scale_max=100.0,
    dtype="bfloat16",
    remat="none",  # the backward pass computes anew: "blocks", "all_but_products"
    image=dict(
      name="resnet",  # or "vit", of the keys below
      weights="",  # a file or folder to start from, see docs/weights.md; empty: at random
      mean=(0.5,),  # of image pixels in [0, 1]; three values: as of a colour image
      std=(0.25,),
      depth=50,
      width=1.0,
      stages=4,
      output_stride=16,  # image pixels a pixel of the feature map
      dilated=True,
      norm="batch",
      projector=0,
      adapter=0,  # transformer layers that learn between the encoder and its heads
      lora_rank=0,  # of updates to a ViT's queries and values, which learn where it is frozen
      lora_blocks=0,  # the blocks that have them, from the last that is run down
      spread_stage=0,  # of a ResNet, whose features tell what looks alike; 0: the last
      vit=dict(
        variant="vit",  # or "dinov2", "dinov2_registers", "dinov3", "clip", "siglip"
        embed_dim=768,
        depth=12,
        num_heads=12,
        mlp_dim=3072,
        patch_px=16,
        grid=14,  # patches a side that the learned positions stand for
        registers=0,
        gated=False,  # perceptrons of DINOv2's giant
        layers=(),  # blocks whose features are taken, from 1, e.g. (8,); none: the last
        dark_below_fraction=0.0,  # of the range: darker patches show nothing, and have no features
      ),
    ),
    text=dict(
      name="bert",  # or "mpnet"
      weights="",  # as above; a folder's config.json then gives the sizes, down to max_position
      embed_dim=768,
      depth=12,
      num_heads=12,
      mlp_dim=3072,
      max_position=512,
      across_sentences=False,  # whether a word attends to other sentences than its own
      dropout=0.1,
      last_layers=1,  # the last hidden states that are summed
      projector=0,
    ),
  )


def _alignment() -> dict:
  return dict(
    method="plan",  # or a baseline: none, gloria, sparc, mgca
    mask_positives=True,  # reports that say the same are no negatives
    beta=5.0,  # sharpness of the pooling over words
    word_weight=3.0,  # of the contrast of single words over the images
    term_weight=1.0,  # of the diagnostic terms as a teacher of the significance
    side_weight=0.0,  # of "a term's region lies in the half of the image that its sentence names"
    swap_weight=0.0,  # of "with left and right exchanged the sentence fits its image less"
    move_weight=0.0,  # of "and its term's region lies in the other half"
    smooth_steps=0,  # pixels are averaged over those that look alike, in so many steps
    smooth_share=1.0,  # of the average in a pixel, beside the pixel itself
    spread_steps=0,  # regions that are shown spread over them
    spread_tau=0.2,  # how alike
    spread_radius_fraction=0.0625,  # how far a step reaches, of the image's side
    dtype="bfloat16",  # of the products of words and pixels; or "float32"
    implementation="ring",  # the same on one device: "chunked", or "full"
    tile_images=0,  # compared at once; 0: as many as fit into tile_mib
    tile_reports=0,
    tile_mib=0,  # of memory for them; 0: 32 on CPUs, else a sixteenth of a device's memory
  )


def _curriculum() -> dict:
  """One entry a stage: one stage, unless a config adds others that begin later."""
  words = dict(
    start_fraction=0.0,
    global_weight=1.0,
    local_weight=1.0,  # 0: the global loss alone
    tau=0.2,  # temperature of the soft region
    term_filter=True,  # words weigh by their significance; else all alike
  )
  return dict(words=words)


def _train() -> dict:
  return dict(
    steps=50_000,
    batch_size=256,
    micro_batches=1,  # the encoders take the batch apart into so many, to save memory
    learning_rate=5e-4,
    warmup_fraction=0.05,
    weight_decay=0.05,
    beta2=0.98,
    clip_norm=1.0,
    freeze=(),  # regular expressions, searched for in parameters' paths: they do not learn
    image_rate=1.0,  # times learning_rate, for the image encoder
    text_rate=1.0,
    layer_decay=1.0,  # times the rate, for each layer of an encoder from the top down
    ema_decay=0.0,  # 0: none; with it, the running mean is evaluated
    log_every_steps=50,
  )


def _checkpoint() -> dict:
  return dict(
    every_steps=1000,
    keep_last=2,
    best_metric="",  # e.g. "validation/grounding/mIoU"; needs evaluation there
    evaluate="last",  # or "best"
  )


def _evaluation() -> dict:
  return dict(
    split="test",
    every_steps=5000,  # on `during_images` of validation; 0: never
    during_images=500,
    batch_size=32,
    max_tokens=384,  # a whole report
    max_words=256,
    rerank_top=32,  # retrieved candidates that local scores re-order; 0: none
    prompts=("ours",),  # for zero-shot: of plan_jax/inference/prompt_sets, or .json files
    compatibility=False,  # also by the published protocols of others
    resamples=1000,  # of the bootstrap
    report_images=12,  # of each set
    evaluators=_evaluators(),
    sets={},  # further data to evaluate on: name -> evaluation_set(...)
    transfer={},  # learned on the encoder: name -> transfer_task(...)
  )


def _evaluators() -> dict:
  """Evaluators and their protocols; one without is left out.

  Those of others (compat-...) need `evaluation.compatibility`.
  """
  grounding = (
    "compat-vios-s-v2",
    "compat-aep-v2",
    "compat-mgvla-v2",
    "compat-g2g-v2",
    "compat-radzero-v2",
  )
  zero_shot = ("zero-shot-v1", "zero-shot-classes-v1", "compat-test-threshold-v2", "compat-gloria")
  return dict(
    grounding=dict(protocols=("grounding-v1",)),
    grounding_compat=dict(protocols=grounding),
    mass_inside=dict(protocols=("mass-inside-v1",)),
    side=dict(protocols=("side-v1",)),
    retrieval=dict(protocols=("retrieval-v1",)),
    retrieval_compat=dict(protocols=("compat-instance", "compat-limitr-v2")),
    class_retrieval=dict(protocols=("class-retrieval-v1",)),
    reranking=dict(protocols=("reranked-retrieval-v1", "reranked-class-retrieval-v1")),
    presence=dict(protocols=("presence-v1",)),
    zero_shot=dict(protocols=zero_shot),
    terms=dict(protocols=("terms-v1",)),
    segmentation_compat=dict(protocols=()),  # see docs/evaluation.md
  )


def transfer_task(
  task: str,
  *,
  of: str = "",
  fractions: tuple[float, ...] = (0.01, 0.1, 1.0),
  encoders: tuple[str, ...] = ("run",),
  **flags,
) -> ConfigDict:
  """A task that evaluation learns on the run's image encoder, once for each share of the labels.

  Args:
    task: "detection", "segmentation", "classification" or "linear_probe", the tasks of
      `python -m plan_jax.transfer --task=TASK`.
    of: the evaluation set to learn from and score on; empty: the run's own data.
    fractions: of the training patients; none: the task is left out.
    encoders: "run" and those to compare it with, as --encoder of the command has it.
    **flags: of the command.
  """
  return ConfigDict(
    dict(task=task, of=of, fractions=fractions, encoders=encoders, flags=ConfigDict(flags))
  )


def evaluation_set(
  dataset: str, *, split: str = "test", selection: str = "", **options
) -> ConfigDict:
  """A further data set to evaluate on; without a source or records it is left out, and named.

  Its records lie in WORKDIR/records_NAME, its stored features, where the run has such, in
  WORKDIR/features_NAME, or where `records` and `features` say.
  """
  return ConfigDict(
    dict(
      dataset=dataset,
      source="",
      records="",
      features="",
      split=split,
      selection=selection,
      selection_seed=0,
      options=options,
    )
  )
