"""Types for options: a signature is the schema of its config, and these say what a bare `int` cannot.

`signatures.py` reads annotations from source, without importing the module, and checks every config value against them;
it knows these names, `int`, `float`, `bool`, `str`, `Path` (must exist), `Literal[...]`, `list[...]` and `X | None`.
"""

from typing import Annotated

PositiveInt = Annotated[int, "an integer of at least 1"]
NonNegativeInt = Annotated[int, "an integer of at least 0"]
PositiveFloat = Annotated[float, "a number above 0"]
NonNegativeFloat = Annotated[float, "a number of at least 0"]
Fraction = Annotated[float, "a number between 0 and 1, both excluded"]
