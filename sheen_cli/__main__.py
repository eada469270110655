"""`python -m sheen_cli`, for launchers that start modules."""

from sheen_cli.cli import main

main()
