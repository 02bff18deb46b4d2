"""Run-time checker of the types and shapes of arguments; integers pass for floats."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
