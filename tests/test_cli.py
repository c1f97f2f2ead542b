"""The command line starts light, words failures in one line and explains itself."""

import signal
import subprocess
import sys

import pytest
import typer

from sdlora import __version__, cli
from sdlora.errors import SdloraError

HEAVY = ("torch", "numpy", "scipy", "PIL", "matplotlib", "diffusers", "transformers", "accelerate", "safetensors", "pydantic")


def failing(error: BaseException) -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    return app


def commands() -> list[list[str]]:
    """The words of every command and group, [] for sdlora itself."""
    found, waiting = [], [([], typer.main.get_command(cli.build()))]
    while waiting:
        words, command = waiting.pop()
        found.append(words)
        waiting += [([*words, name], sub) for name, sub in getattr(command, "commands", {}).items()]
    return sorted(found)


def test_help_comes_without_loading_what_training_needs():
    script = f"import sys; from sdlora import cli; code = cli.main(['--help']); sys.exit(code or sorted(sys.modules.keys() & {set(HEAVY)}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 or "[]" in done.stderr, done.stderr
    for name in ("train", "generate", "benchmark", "demo", "adapter"):
        assert name in done.stdout


def test_every_command_explains_itself(capsys):
    found = commands()
    assert {words[0] for words in found if words} >= {"train", "generate", "benchmark", "demo", "adapter"}
    for words in found:
        assert cli.main([*words, "--help"]) == 0, words
        text = capsys.readouterr().out
        assert text.startswith(f"Usage: {' '.join(['sdlora', *words])}"), text
        assert len(text.splitlines()) > 4, f"sdlora {' '.join(words)} has no word of help"


def test_version_is_the_packages(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"sdlora {__version__}"


def test_a_users_mistake_is_one_line_and_exit_code_two(capsys):
    assert cli.run(failing(SdloraError("steps is 0; give at least 1")), []) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: steps is 0; give at least 1\n")


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run(failing(ZeroDivisionError()), [])


@pytest.mark.parametrize(("said", "printed"), [("", "interrupted"), ("stopped after step 3 of 9", "stopped after step 3 of 9")])
def test_an_interruption_is_one_line_and_exit_code_130(said, printed, capsys):
    assert cli.run(failing(KeyboardInterrupt(*filter(None, [said]))), []) == 130
    assert capsys.readouterr().err.strip() == printed


@pytest.mark.parametrize("arguments", [["trian"], ["generate", "--nonsense"], ["train"]])
def test_a_wrong_call_names_the_way_to_help(arguments, capsys):
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert "--help" in err and "Traceback" not in err


@pytest.mark.parametrize("command", ["train", "benchmark"])
def test_a_missing_config_file_is_named(command, tmp_path, capsys):
    missing = tmp_path / "nowhere.toml"
    assert cli.main([command, str(missing)]) == 2
    err = capsys.readouterr().err
    assert "nowhere.toml" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_after_the_last_word_leaves_no_traceback():
    late = "atexit.register(os.kill, os.getpid(), signal.SIGINT)"
    script = f"import atexit, os, signal; from sdlora import cli; {late}; cli.program(['--version'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "") and done.stdout.startswith("sdlora ")
