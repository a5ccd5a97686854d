"""argv to command: `run COMMAND [OVERRIDES]`. Help, lists, completion and typos import neither torch nor hydra."""

import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from outlie.errors import UserError, unknown

COMMANDS = {
    "train": "assemble, train or fit, evaluate, store",
    "sweep": "every cell of a sweep, as run train -m: detector=a,b seed=range(5)",
    "distill": "train a small student from a finished run",
    "eval": "score a finished run again: other test sets, metrics, many detectors",
    "probe": "linear probes on a denoiser's run: which block, at which noise",
    "sample": "images from a denoiser's run, and how far they are from real ones",
    "score": "new rows or images through a finished run: p-values, verdicts, alerts",
    "export": "a finished run as one ONNX graph, checked against the original",
    "bench": "latency, throughput, memory, FLOPs of finished runs, side by side",
    "table": "a paper's table: what is missing is computed; published, ours, inside or not",
    "report": "one HTML page over any selection of runs",
    "figure": "draw a paper's figure, as PNG or SVG",
    "list": "what exists, with one line each",
    "show": "one choice with all its options, or a finished run",
    "data": "list, fetch and verify datasets",
    "completion": "shell completion for bash and zsh",
}
RUNNERS = ("train", "distill", "eval", "probe", "sample", "score", "export", "bench")  # have a config of their own
SWEPT = ("train", "distill")  # take -m
OPTIONS = {
    "--help": 0,
    "-h": 0,
    "--version": 0,
    "--json": 0,
    "--config-dir": 1,
    "--config": 1,
    "-m": 0,
    "--multirun": 0,
}


class Words(NamedTuple):
    """argv, sorted."""

    command: str
    rest: list[str]
    options: dict[str, list[str]]  # option -> values given


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 failed, 2 the user's mistake, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    debug = any(word.removeprefix("++") == "debug=true" for word in argv)
    try:
        if argv[:1] == ["--complete"]:
            from outlie import completion

            return completion.answer(argv[1:])
        return dispatch(argv)
    except UserError as error:
        return _failed(error, str(error), 2, debug)
    except KeyboardInterrupt:
        resumes = (
            "; the same command goes on where this one stopped"
            if argv[:1] in (["train"], ["sweep"], ["distill"], ["figure"], ["table"])
            else ""
        )
        print(f"interrupted{resumes}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `run list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return _failed(error, f"{text}\ndebug=true shows the traceback", 1, debug)


def _failed(error: BaseException, text: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    print(f"error: {text}", file=sys.stderr)
    return code


def dispatch(argv: list[str]) -> int:
    """Find the command and call it."""
    if argv[:1] == ["data"]:  # has verbs and options of its own
        from outlie.commands import data

        return data.main(argv[1:])
    words = parse(argv)
    if "--version" in words.options:
        return _print(f"outlie {version()}")
    config_dirs = tuple(words.options.get("--config-dir", ()))
    if not words.command or "--help" in words.options:
        from outlie import usage

        return _print(usage.overview(COMMANDS) if not words.command else usage.command(words.command, config_dirs))
    return _commands()[words.command](words, config_dirs)


def _commands() -> dict[str, Callable[[Words, tuple[str, ...]], int]]:
    return dict.fromkeys(RUNNERS, _run) | {
        "sweep": _sweep, "table": _table, "report": _report, "figure": _figure, "list": _list, "show": _show,
        "completion": _completion,
    }  # fmt: skip


def parse(argv: list[str]) -> Words:
    """The command, its words and the options; UserError for an option or a command that does not exist."""
    options: dict[str, list[str]] = {}
    rest: list[str] = []
    left = list(argv)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-":
            rest.append(word)
        elif name not in OPTIONS:
            raise UserError(unknown("option", name, OPTIONS))
        elif OPTIONS[name] == 0:
            options[{"-h": "--help", "-m": "--multirun"}.get(name, name)] = []
        elif equals or left:
            options.setdefault(name, []).append(value if equals else left.pop(0))
        else:
            raise UserError(f"{name} needs a value")
    if rest and rest[0] not in COMMANDS:
        raise UserError(f"{unknown('command', rest[0], COMMANDS)}. run --help")
    return Words(rest[0] if rest else "", rest[1:], options)


def _run(words: Words, config_dirs: tuple[str, ...]) -> int:
    import importlib
    from pathlib import Path

    from outlie.compose import compose

    given = words.options.get("--config")
    if given and not os.path.isfile(given[-1]):
        raise UserError(f"--config '{given[-1]}' is not a file")
    if "--multirun" in words.options:
        return _sweep(words, config_dirs)
    config = compose(words.command, words.rest, config_dirs, Path(given[-1]) if given else None)
    module = "evaluate" if words.command == "eval" else words.command
    return importlib.import_module(f"outlie.commands.{module}").main(config)


def _sweep(words: Words, config_dirs: tuple[str, ...]) -> int:
    from pathlib import Path

    from outlie.commands import sweep

    command = "train" if words.command == "sweep" else words.command
    if command not in SWEPT:
        raise UserError(f"run {command} takes no -m: sweeps are of {' and '.join(f'run {name}' for name in SWEPT)}")
    given = words.options.get("--config")
    return sweep.main(words.rest, config_dirs, command, Path(given[-1]) if given else None)


def _table(words: Words, config_dirs: tuple[str, ...]) -> int:
    from outlie.commands import table

    return table.main(words.rest, config_dirs)


def _report(words: Words, config_dirs: tuple[str, ...]) -> int:
    from outlie.commands import report

    return report.main(words.rest, config_dirs)


def _figure(words: Words, config_dirs: tuple[str, ...]) -> int:
    from outlie.commands import figure

    return figure.main(words.rest, config_dirs)


def _list(words: Words, config_dirs: tuple[str, ...]) -> int:
    from outlie.commands import listing

    return listing.main(words.rest, config_dirs, as_json="--json" in words.options)


def _show(words: Words, config_dirs: tuple[str, ...]) -> int:
    from outlie.commands import show

    return show.main(words.rest, config_dirs)


def _completion(words: Words, config_dirs: tuple[str, ...]) -> int:
    from outlie import completion

    if len(words.rest) != 1:
        raise UserError("give a shell: run completion bash, or run completion zsh")
    return _print(completion.script(words.rest[0]))


def version() -> str:
    """The installed version."""
    from importlib.metadata import version as installed

    return installed("outlie")


def _print(text: str) -> int:
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
