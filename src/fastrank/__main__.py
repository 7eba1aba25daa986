"""``python -m fastrank`` is ``fastrank``."""

from fastrank.cli import main

main()
