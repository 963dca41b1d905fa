"""Completion of the command line in bash and zsh: commands, options, presets and files."""

from __future__ import annotations

import argparse
import shlex
import sys

from planner.presets import preset_ids

SHELLS = ("bash", "zsh")
_SPECS = "_planner_specs"


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """A script for ``eval``: a function ``planner`` that runs this installation, and what completes its arguments."""
    import shtab

    for group in parser._actions:
        for command in group.choices.values() if isinstance(group, argparse._SubParsersAction) else ():
            for action in command._actions:
                if action.dest == "spec":
                    action.complete = {shell: _SPECS for shell in SHELLS}
    names = " ".join(preset_ids())
    preamble = {
        "bash": f'{_SPECS}() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}',
        "zsh": f"{_SPECS}() {{ compadd {names}; _files; }}",
    }
    completion: str = shtab.complete(parser, shell, preamble=preamble[shell])
    return f'planner() {{ {shlex.quote(sys.executable)} -m planner "$@"; }}\n{completion}'
