"""Options: typed, each stated once; the old spelling of parameters; what a shell completes."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from riemerge.cli.commands import main
from riemerge.cli.options import Words
from riemerge.methods import METHODS, PARAMETERS
from riemerge.report.words import value_type
from tests.helpers import ROOT

BINDING = "import sys; from riemerge.cli import main; main(prog_name='riemerge')"


def complete(shell: str, **variables: str) -> str:
    """What the program prints to a shell that asks it to complete a line."""
    ran = subprocess.run(
        [sys.executable, "-c", BINDING],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "_RIEMERGE_COMPLETE": shell, **variables},
    )
    return ran.stdout


@pytest.mark.parametrize("verb", ["merge", "soup", "sweep"])
def test_every_parameter_has_its_old_option_which_help_leaves_out(verb: str) -> None:
    options = {param.name: param for param in main.commands[verb].params if isinstance(param, click.Option)}
    for name, spec in PARAMETERS.items():
        if name != "weight":
            assert options[name].opts == [f"--{name.replace('_', '-')}"]
            shown = name in {"rank", "scale", "solver"}
            assert name == "solver" or options[name].metavar == value_type(spec)
            assert options[name].hidden == (not shown)


def test_every_option_that_help_shows_is_explained() -> None:
    for command in main.commands.values():
        for param in command.params:
            if isinstance(param, click.Option) and not param.hidden:
                assert param.help
                assert param.help.endswith((".", "]")), param.help


def test_a_word_that_is_not_known_is_for_the_recipe_to_refuse() -> None:
    words = Words(["a", "b"])
    assert words.convert("c", None, None) == "c"
    assert [item.value for item in words.shell_complete(click.Context(main), click.Option(["-x"]), "a")] == [
        "a"
    ]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_s_completion_is_printed(shell: str) -> None:
    assert "_RIEMERGE_COMPLETE" in complete(f"{shell}_source", PATH="/usr/bin:/bin")


def test_a_shell_completes_commands_and_methods() -> None:
    found = complete("zsh_complete", COMP_WORDS="riemerge me", COMP_CWORD="1")
    assert {"merge", "methods"} <= {*found.splitlines()}
    found = complete("zsh_complete", COMP_WORDS="riemerge merge --method knots", COMP_CWORD="3")
    assert {name for name in METHODS if name.startswith("knots")} <= {*found.splitlines()}
