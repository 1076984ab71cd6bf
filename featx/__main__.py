"""``python -m featx``."""

from featx.cli import console

console()
