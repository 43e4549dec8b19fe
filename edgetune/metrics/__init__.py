"""How good answers are, as pure functions of texts and numbers: :mod:`texts`, :mod:`labels`."""
