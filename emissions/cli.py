"""The `footprint` command. A subcommand is one function that adds its parser, listed in `COMMANDS`."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import entry_points
from pathlib import Path
from typing import NoReturn

from emissions import doctor, track, whatif_command
from emissions.grid.live import command as intensity_command
from emissions.schedule import command as schedule_command

HOST = "127.0.0.1"  # the dashboard is for the person at this machine

Subparsers = argparse._SubParsersAction


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 2 with one line on stderr for a user's mistake."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    arguments = _parser().parse_args(argv)
    try:
        status = arguments.run(arguments)
        if sys.stdout is not None:  # `>&-`
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # `footprint summary | head`: the reader has seen enough
        return 0
    except (ValueError, OSError) as error:
        with contextlib.suppress(OSError):
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        _give_up_what_is_unwritten()


def _give_up_what_is_unwritten() -> None:
    """Python would try once more at its end, fail, and change the exit status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="footprint",
        description="Energy and carbon of generative medical imaging.",
        epilog="example: footprint summary --results results",
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for register in COMMANDS:
        register(subparsers)
    for entry in entry_points(group="footprint.commands"):  # what needs networks, where those are installed
        entry.load()(subparsers)
    return parser


def _register_summary(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "summary",
        help="print what a study took",
        description="Print the energy and emissions of a finished study on one screen.",
        epilog="example: footprint summary --results results --json",
    )
    _add_results(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=_summary)


def _summary(arguments: argparse.Namespace) -> int:
    from emissions.summary import summarise, summary_text  # pandas, which `footprint track` need not wait for

    if arguments.json:
        print(json.dumps(summarise(arguments.results), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(summary_text(arguments.results), end="")
    return 0


def _register_dashboard(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "dashboard",
        help="serve the dashboard on this machine",
        description=f"Serve results/dashboard on {HOST} until Ctrl-C. The page also opens as a file.",
        epilog="example: footprint dashboard --port 8050",
    )
    _add_results(parser)
    parser.add_argument("--port", type=_port, default=8050, help="0 takes a free one (default: %(default)s)")
    parser.set_defaults(run=_dashboard)


def _dashboard(arguments: argparse.Namespace) -> int:
    folder = arguments.results / "dashboard"
    if not (folder / "index.html").is_file():
        raise FileNotFoundError(f"{folder / 'index.html'}: no dashboard; run the study first (make study)")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    try:
        server = ThreadingHTTPServer((HOST, arguments.port), handler)
    except OSError as error:
        raise OSError(f"port {arguments.port} cannot be used ({error.strerror}); choose another with --port") from error
    with server:
        print(f"dashboard at http://{HOST}:{server.server_port}/ (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="the study's folder (default: %(default)s)",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: use 0 to 65535")
    return int(text)


COMMANDS: tuple[Callable[[Subparsers], None], ...] = (
    _register_summary,
    _register_dashboard,
    track.register,
    doctor.register,
    whatif_command.register,
    schedule_command.register,
    intensity_command.register,
)

if __name__ == "__main__":
    sys.exit(main())
