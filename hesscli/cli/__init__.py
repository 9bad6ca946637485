"""The command line: typer only. Torch is imported inside the commands that measure, nowhere above them."""

from hesscli.cli.app import main

__all__ = ["main"]
