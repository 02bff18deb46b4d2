"""Method `none`: no local loss (ConVIRT, CLIP).

A text is grounded by its global embedding against pixels through the image's own head.
"""

import jax.numpy as jnp

from plan_jax.alignment.curriculum import Stage
from plan_jax.alignment.methods.base import Alignment, Method, WordAttention
from plan_jax.alignment.regions import soft_region

TAU = 0.2  # of the map alone (ours)


def attend(image, text, stage: Stage, alignment: Alignment) -> WordAttention:
  """Returns the attention of the text embedding, alike for all words."""
  similarity = jnp.broadcast_to(
    image.global_pixels @ text.embedding, (text.mask.shape[-1], image.global_pixels.shape[-2])
  )
  return WordAttention(soft_region(similarity, TAU), similarity)


METHOD = Method(None, attend)
