"""Make a discriminator's folder.

python -m verl_prism.discriminator upcycle DENSE TARGET    from a dense Qwen3-VL
python -m verl_prism.discriminator convert SOURCE TARGET   from the published checkpoint
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from verl_prism.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for a mistake in the input, 130 where it was stopped."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except UserError as error:
        sys.stderr.write(f"verl_prism.discriminator: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="verl_prism.discriminator", description="Make a discriminator's folder."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    upcycle = commands.add_parser(
        "upcycle",
        help="from a dense Qwen3-VL",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    upcycle.add_argument("source", metavar="DENSE", type=Path, help="folder of a dense Qwen3-VL")
    upcycle.add_argument("--experts", type=int, default=4, help="experts per layer")
    upcycle.add_argument(
        "--experts-per-token", type=int, default=2, help="experts that each token goes through"
    )
    upcycle.add_argument(
        "--routing",
        choices=("dedicated", "token", "dense"),
        default="dedicated",
        help="experts of each view's own; all experts for every token, with one head; or no experts",
    )
    upcycle.add_argument(
        "--noise",
        type=float,
        default=0.0,
        help="on each expert, relative to its weights' deviation",
    )
    upcycle.add_argument(
        "--seed", type=int, default=0, help="of the noise, the routers and the heads"
    )
    convert = commands.add_parser("convert", help="from the published checkpoint")
    convert.add_argument(
        "source", metavar="SOURCE", type=Path, help="folder of the published checkpoint"
    )
    for command in (upcycle, convert):
        command.add_argument(
            "target",
            metavar="TARGET",
            type=Path,
            help="folder to write; a discriminator is replaced",
        )
    return parser


def _run(options: argparse.Namespace) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, description="writing", completed=done, total=total)

        if options.command == "upcycle":
            from verl_prism.discriminator.upcycling import upcycle

            upcycle(
                options.source,
                options.target,
                experts=options.experts,
                experts_per_token=options.experts_per_token,
                routing=options.routing,
                noise=options.noise,
                seed=options.seed,
                on_progress=show,
            )
        else:
            from verl_prism.discriminator.published import convert_published

            convert_published(options.source, options.target, on_progress=show)
    files = sorted(options.target.glob("*.safetensors"))
    size = decimal(sum(file.stat().st_size for file in files))
    sys.stdout.write(
        f"{options.target}: discriminator of {size} in {len(files)} file{'s' * (len(files) > 1)}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
