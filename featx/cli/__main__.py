"""``python -m featx.cli``."""

from featx.cli import console

console()
