"""All commands under one name: `openrlhf COMMAND FLAGS`, as `openrlhf train-sft --help`.

`openrlhf --ranks 8 train-sft FLAGS` starts 8 processes on this machine with DeepSpeed's launcher. On several machines,
or under torchrun or srun, name the module: `deepspeed --hostfile F --module openrlhf.cli.train_sft FLAGS`.
"""

from __future__ import annotations

import argparse
import ast
import os
import runpy
import socket
import sys
from pathlib import Path

from openrlhf import __version__
from openrlhf.versions import TRIED, installed

_NOT_COMMANDS = ("__init__", "main", "entry", "process_list", "standard_streams", "completion", "batch_inference")


def commands() -> dict[str, str]:
    """What each command does, by name, read without loading it."""
    files = [file for file in sorted(Path(__file__).parent.glob("*.py")) if file.stem not in _NOT_COMMANDS]
    return {file.stem.replace("_", "-"): _first_sentence(file) for file in files}


def _first_sentence(file: Path) -> str:
    """Of the module's text, up to the command line that it shows."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0].partition(": `")[0].rstrip(".")


def main() -> None:
    """The entry point of the package."""
    known = commands()
    width = max(map(len, known))
    parser = argparse.ArgumentParser(
        prog="openrlhf",
        usage="openrlhf [--ranks N] COMMAND FLAGS",
        description="\n".join(["commands:", *(f"  {name:{width}}  {what}" for name, what in known.items())]),
        epilog="openrlhf COMMAND --help lists all flags of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="versions of this package and of those below it")
    parser.add_argument("--ranks", type=int, metavar="N", help="processes on this machine (default: this one alone)")
    parser.add_argument("--completion", choices=("bash", "zsh"), help="print what makes a shell complete names")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.version:
        print(_versions())
    elif options.completion:
        from openrlhf.cli.completion import script_for  # it loads the settings of all commands

        print(script_for(options.completion, [*known]))
    elif not options.command:
        parser.print_help()
    elif (name := options.command[0].replace("_", "-")) not in known:
        parser.error(f"{options.command[0]} is no command: choose {', '.join(known)}.")
    else:
        _run(f"openrlhf.cli.{name.replace('-', '_')}", options.command[1:], options.ranks)


def _versions() -> str:
    found = {package: installed(package) or "not installed" for package in TRIED}
    return "\n".join([f"openrlhf {__version__}", *(f"{package} {version}" for package, version in found.items())])


def _run(module: str, flags: list[str], num_ranks: int | None) -> None:
    if num_ranks is None:
        sys.argv = [module, *flags]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(num_ranks)]
    os.execv(sys.executable, [*launcher, "--master_port", str(_free_port()), "--module", module, *flags])


def _free_port() -> int:
    with socket.socket() as any_socket:
        any_socket.bind(("", 0))
        return int(any_socket.getsockname()[1])


if __name__ == "__main__":
    main()
