"""`doctor`: check the installation."""

from __future__ import annotations

import argparse

HELP = "check the installation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`doctor` has no options."""


def run(arguments: argparse.Namespace) -> int:
    """Print every check; 2 if one failed."""
    from .doctor_checks import diagnose

    checks = diagnose()
    for check in checks:
        print(f"{check.status:4}  {check.name}: {check.message}")
    return 2 if any(check.status == "fail" for check in checks) else 0
