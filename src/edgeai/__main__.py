"""`python -m edgeai` is the command line."""

from edgeai.cli import main

main()
