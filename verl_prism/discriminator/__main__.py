"""Make the folder of a discriminator.

python -m verl_prism.discriminator upcycle DENSE TARGET    from a dense Qwen3-VL
python -m verl_prism.discriminator convert SOURCE TARGET   from the published checkpoint
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from verl_prism.discriminator.model import Routing, Scoring
from verl_prism.discriminator.published import convert_published
from verl_prism.discriminator.upcycling import upcycle
from verl_prism.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 2 for a mistake in the input, 130 if interrupted."""
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
        prog="verl_prism.discriminator", description="Make the folder of a discriminator."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_upcycle(commands)
    convert = commands.add_parser("convert", help="from the published checkpoint")
    _add_folders(convert, "SOURCE", "folder of the published checkpoint")
    return parser


def _add_upcycle(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    upcycle = commands.add_parser(
        "upcycle",
        help="from a dense Qwen3-VL",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = upcycle.add_argument
    add("--experts", type=int, default=4, help="experts per layer")
    add("--experts-per-token", type=int, default=2, help="experts that process each token")
    add(
        "--routing",
        choices=get_args(Routing),
        default="dedicated",
        help="dedicated: experts and a head per view; token: all experts for every token, one "
        "head; dense: no experts",
    )
    add(
        "--scoring",
        choices=get_args(Scoring),
        default="head",
        help="head: a linear head reads the score; likelihood: it is that of the text",
    )
    add(
        "--images",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether it sees the images of prompts",
    )
    add(
        "--noise",
        type=float,
        default=0.0,
        help="standard deviation of the noise on each expert, relative to that of its weights",
    )
    add("--seed", type=int, default=0, help="of the noise, the routers and the heads")
    _add_folders(upcycle, "DENSE", "folder of a dense Qwen3-VL")


def _add_folders(command: argparse.ArgumentParser, source: str, explanation: str) -> None:
    command.add_argument("source", metavar=source, type=Path, help=explanation)
    command.add_argument(
        "target",
        metavar="TARGET",
        type=Path,
        help="folder to write; a discriminator that is already there is replaced",
    )


def _run(options: argparse.Namespace) -> None:
    # disable=None: no bar unless stderr is a terminal
    with tqdm(desc="writing", unit="B", unit_scale=True, leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        if options.command == "convert":
            convert_published(options.source, options.target, on_progress=show)
        else:
            upcycle(
                options.source,
                options.target,
                experts=options.experts,
                experts_per_token=options.experts_per_token,
                routing=options.routing,
                scoring=options.scoring,
                images=options.images,
                noise=options.noise,
                seed=options.seed,
                on_progress=show,
            )
    files = sorted(options.target.glob("*.safetensors"))
    size = tqdm.format_sizeof(sum(file.stat().st_size for file in files), "B")
    plural = "s" if len(files) > 1 else ""
    sys.stdout.write(f"{options.target}: discriminator of {size} in {len(files)} file{plural}\n")


if __name__ == "__main__":
    sys.exit(main())
