"""Variants of a config: what stands behind the file's name, as in `configs/mimic.py:vit,512`."""


def parse(file: str, variant: str, *groups: tuple[str, ...], required: int = 0) -> tuple[str, ...]:
  """Chooses an option of each group: the one that the variant names, else the group's first.

    encoder, image_px = parse("mimic.py", "512", ("resnet50", "vit"), ("224", "512"))
    # "resnet50", "512"

  Args:
    file: the config, for messages.
    variant: names with "," between, in any order; empty for none.
    *groups: the options of each group; "" as the first stands for none of the others.
    required: the first groups, so many, have no default.

  Raises ValueError for a name of no group, for two of one group, and for a required one missing.
  """
  names = variant.split(",") if variant else []
  known = [option for group in groups for option in group]
  there_are = f"of {file}; there are {', '.join(option for option in known if option)}"
  if unknown := set(names) - set(known):
    raise ValueError(f"no variant {min(unknown)!r} {there_are}")
  options = []
  for i, group in enumerate(groups):
    chosen = [option for option in group if option in names]
    if len(chosen) > 1:
      raise ValueError(f"variant {variant!r} of {file}: {' and '.join(chosen)} exclude each other")
    if not chosen and i < required:
      raise ValueError(f"no variant {variant!r} {there_are}")
    options.append(chosen[0] if chosen else group[0])
  return tuple(options)
