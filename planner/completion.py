"""Completion of the command line in bash and zsh: commands, options, presets and files."""

from __future__ import annotations

import argparse
import shlex
import sys

from planner.presets import preset_ids

SHELLS = ("bash", "zsh")
_SPECS = "_planner_specs"
OF_A_SPEC = {shell: _SPECS for shell in SHELLS}
"""What an argument's ``complete`` says where it is a SPEC: a preset or a file."""


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """A script for ``eval``: a function ``planner`` that runs this installation, and what completes its arguments."""
    import shtab

    names = " ".join(preset_ids())
    preamble = {
        "bash": f'{_SPECS}() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}',
        "zsh": f"{_SPECS}() {{ compadd {names}; _files; }}",
    }
    completion: str = shtab.complete(parser, shell, preamble=preamble[shell])
    return f'planner() {{ {shlex.quote(sys.executable)} -m planner "$@"; }}\n{completion}'
