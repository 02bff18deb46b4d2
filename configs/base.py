"""Every key there is, with the defaults of a full-size run; the other configs override it."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The full-size configuration."""
  config = ConfigDict()
  config.seed = 0
  config.runlocal = False  # a few images, steps and parameters: does the whole way work?

  config.data = ConfigDict()
  config.data.dataset = "folder"  # a reader of input_pipeline/readers
  config.data.source = ""  # the raw folder
  config.data.records = ""  # where the shards are or go; empty: WORKDIR/records
  config.data.stored_px = 512  # bound on the short side of a stored image
  config.data.limit = 0  # images of each split; 0: all
  config.data.max_skipped_fraction = 0.01  # more unreadable images than this stop the conversion
  config.data.options = ConfigDict()  # the reader's own
  config.data.selection = (
    ""  # of images: a name of input_pipeline/conversion/selections.py, or a .json file
  )
  config.data.selection_seed = 0
  config.data.augment = True
  config.data.workers = 0  # decoding processes; 0: threads only
  config.data.threads = 2

  config.text = ConfigDict()
  config.text.tokenizer = ""  # a local Hugging Face folder; empty: trained on the training reports
  config.text.vocabulary_size = 8192  # of a trained tokenizer
  config.text.terms = (
    ""  # a list of diagnostic terms; empty: input_pipeline/text/diagnostic_terms.txt
  )
  config.text.max_tokens = 192
  config.text.max_words = 96

  config.model = ConfigDict()
  config.model.image_px = 224
  config.model.embed_dim = 128  # width of the shared space
  config.model.scale_init = 10.0  # inverse temperatures of the contrasts
  config.model.scale_max = 100.0
  config.model.dtype = "bfloat16"
  config.model.remat = "none"  # what the backward pass computes anew: "blocks", "all_but_products"
  config.model.image = ConfigDict(
    dict(
      name="resnet",  # or "vit", of the keys below
      weights="",  # a file or folder to start from, see docs/weights.md; empty: at random
      mean=(0.5,), std=(0.25,),  # of image pixels in [0, 1]; three values: as of a colour picture
      depth=50, width=1.0, stages=4, output_stride=16, dilated=True, norm="batch", projector=0,
    )
  )  # fmt: skip
  config.model.image.vit = ConfigDict(
    dict(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072, patch_px=16, grid=14)
  )
  config.model.text = ConfigDict(
    dict(
      weights="",  # as above
      embed_dim=768, depth=12, num_heads=12, mlp_dim=3072, max_position=512, across_sentences=False,
      dropout=0.1, last_layers=1, projector=0,
    )
  )  # fmt: skip

  config.alignment = ConfigDict()
  config.alignment.method = "plan"  # or a baseline: none, gloria, sparc, mgca
  config.alignment.mask_positives = True  # reports that say the same are no negatives
  config.alignment.sparsifier = "threshold"
  config.alignment.evidence = "soft_maximum"  # of a word: or "cosine" with its region
  config.alignment.eta = 0.5  # how far a query moves to its region in a round
  config.alignment.beta = 5.0  # sharpness of the pooling over words
  config.alignment.word_weight = 3.0  # of the contrast of single words over the images
  config.alignment.term_weight = 1.0  # of the diagnostic terms as a teacher of the significance
  config.alignment.dtype = "bfloat16"  # of the products of words and pixels; or "float32"
  config.alignment.implementation = "ring"  # the same on one device: "chunked", or "full"
  config.alignment.tile_images = 0  # compared at once; 0: as many as fit into tile_mib
  config.alignment.tile_reports = 0
  config.alignment.tile_mib = 256

  # One entry a stage; per-round tuples set the number of rounds.
  config.curriculum = ConfigDict()
  config.curriculum.words = ConfigDict(
    dict(
      start_fraction=0.0, global_weight=1.0, local_weight=(1.0,), tau=(0.2,), gamma=(0.0,),
      term_filter=True, cut_below=0.0,
    )
  )  # fmt: skip
  config.curriculum.refine = ConfigDict(
    dict(
      start_fraction=0.6, global_weight=1.0, local_weight=(1.0,), tau=(0.2,), gamma=(1.0,),
      term_filter=True, cut_below=0.0,
    )
  )  # fmt: skip

  config.train = ConfigDict()
  config.train.steps = 50_000
  config.train.batch_size = 256
  config.train.micro_batches = 1  # the encoders take the batch apart into so many, to save memory
  config.train.learning_rate = 5e-4
  config.train.warmup_fraction = 0.05
  config.train.weight_decay = 0.05
  config.train.beta2 = 0.98
  config.train.clip_norm = 1.0
  config.train.freeze = ()  # what does not learn: regular expressions, found in parameters' paths
  config.train.image_rate = 1.0  # times learning_rate, for the image encoder
  config.train.text_rate = 1.0
  config.train.layer_decay = 1.0  # times the rate, for each layer of an encoder from the top down
  config.train.ema_decay = 0.0  # 0: none; with it, the running mean is what is evaluated
  config.train.log_every_steps = 50

  config.checkpoint = ConfigDict()
  config.checkpoint.every_steps = 1000
  config.checkpoint.keep_last = 2
  config.checkpoint.best_metric = ""  # e.g. "validation/grounding/mIoU"; needs evaluation there
  config.checkpoint.evaluate = "last"  # or "best"

  config.evaluation = ConfigDict()
  config.evaluation.split = "test"
  config.evaluation.every_steps = 5000  # on `during_images` of validation; 0: never
  config.evaluation.during_images = 500
  config.evaluation.batch_size = 32
  config.evaluation.max_tokens = 384  # a whole report
  config.evaluation.max_words = 256
  config.evaluation.rerank_top = 32  # retrieved candidates that local scores re-order; 0: none
  config.evaluation.prompts = (
    "ours",
  )  # for zero-shot: of plan_jax/evaluators/prompt_sets, or .json files
  config.evaluation.compatibility = False  # also by the published protocols of others
  config.evaluation.resamples = 1000  # of the bootstrap
  config.evaluation.report_images = 12  # of each set
  # Evaluators and their protocols; one without protocols is left out. Those of others (compat-...)
  # need `compatibility`.
  config.evaluation.evaluators = ConfigDict(
    dict(
      grounding=dict(protocols=("grounding-v1",)),
      grounding_compat=dict(
        protocols=("compat-vios-s", "compat-aep", "compat-mgvla", "compat-g2g", "compat-radzero")
      ),
      retrieval=dict(protocols=("retrieval-v1",)),
      retrieval_compat=dict(protocols=("compat-instance", "compat-limitr")),
      class_retrieval=dict(protocols=("class-retrieval-v1",)),
      reranking=dict(protocols=("reranked-retrieval-v1", "reranked-class-retrieval-v1")),
      presence=dict(protocols=("presence-v1",)),
      zero_shot=dict(
        protocols=(
          "zero-shot-v1",
          "zero-shot-classes-v1",
          "compat-test-threshold",
          "compat-gloria",
        )
      ),
      terms=dict(protocols=("terms-v1",)),
    )
  )
  config.evaluation.sets = ConfigDict()  # further data to evaluate on: name -> evaluation_set(...)
  config.evaluation.transfer = ConfigDict()  # learned on the encoder: name -> downstream(...)

  config.mesh = ConfigDict(dict(data=-1, fsdp=1))
  return config


def downstream(
  task: str, *, of: str = "", fractions: tuple[float, ...] = (0.01, 0.1, 1.0),
  encoders: tuple[str, ...] = ("run",), **flags,
) -> ConfigDict:  # fmt: skip
  """A task that evaluation learns on the run's image encoder, once for each share of the labels.

  Args:
    task: "detect", "segment", "classify" or "probe": the commands `python -m plan_jax.TASK`.
    of: the evaluation set to learn from and score on; empty: the run's own data.
    fractions: of the training patients; none: the task is left out.
    encoders: "run" and what it is to be compared with, as --encoder of the command has it.
    **flags: of the command.
  """
  return ConfigDict(
    dict(task=task, of=of, fractions=fractions, encoders=encoders, flags=ConfigDict(flags))
  )


def evaluation_set(
  dataset: str, *, split: str = "test", selection: str = "", **options
) -> ConfigDict:
  """A further data set to evaluate on; it is left out, and that is said, until it has a source.

  Its records lie in WORKDIR/records_NAME, or where `records` says.
  """
  return ConfigDict(
    dict(
      dataset=dataset, source="", records="", split=split, selection=selection, selection_seed=0,
      options=options,
    )
  )  # fmt: skip
