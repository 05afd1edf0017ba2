"""What makes a shell complete the names of commands and flags: `eval "$(openrlhf --completion bash)"`."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.config.roots import ROOTS
from openrlhf.config.schema import settings

_SCRIPT = """\
_openrlhf() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} name names="{commands}"
    for name in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $name in
{cases}
        esac
    done
    COMPREPLY=($(compgen -W "$names" -- "$word"))
}}
complete -o default -F _openrlhf openrlhf"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def script_for(shell: str, commands: Sequence[str]) -> str:
    """The text for the shell: bash, or zsh, which reads bash's. Where no name fits, files are offered."""
    flags: dict[str, list[str]] = {name: [] for name in commands}
    for root in ROOTS:
        name = root.command.usage.rpartition("openrlhf.cli.")[2].replace("_", "-")
        flags[name] += [flag for flag in map("--{}".format, settings(root)) if flag not in flags[name]]
    cases = "\n".join(f'            {name}) names="{" ".join(flags[name])}" ;;' for name in commands)
    script = _SCRIPT.format(
        commands=" ".join([*commands, "--ranks", "--version", "--completion", "--help"]), cases=cases
    )
    return (_ZSH if shell == "zsh" else "") + script
