"""`python -m whenwhy` is `whenwhy`."""

from whenwhy.cli import main

main()
