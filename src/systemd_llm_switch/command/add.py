"""`llm-switch add`: a model of one's own, from a GGUF file to its first answer."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from systemd_llm_switch.command import take_over
from systemd_llm_switch.command.add_one import Adder, Source, known_models
from systemd_llm_switch.command.exits import DONE, FAILED, NO_PROXY, USAGE
from systemd_llm_switch.command.proxy_client import NoProxy, Refused, complain, config_problem
from systemd_llm_switch.config.file import find
from systemd_llm_switch.config.records import ConfigError
from systemd_llm_switch.models.flags import Wishes
from systemd_llm_switch.setup import console
from systemd_llm_switch.setup.places import SetupError

TAKES_REST = True  # what follows `--` is llama-server's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "%(prog)s NAME FILE.gguf | NAME -hf REPO[:QUANT] | --from-llama-swap FILE.yaml | --from-presets FILE.ini "
        "[options] [-- LLAMA-SERVER-FLAGS]"
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="what clients will send as `model`")
    parser.add_argument(
        "file", metavar="FILE.gguf", nargs="?", type=Path, help="the model; the first part of a split one"
    )
    parser.add_argument("-hf", "--hf-repo", metavar="REPO[:QUANT]", help="download it from Hugging Face instead")
    parser.add_argument(
        "--from-llama-swap", metavar="FILE.yaml", type=Path, help="take over the models of llama-swap's config"
    )
    parser.add_argument(
        "--from-presets", metavar="FILE.ini", type=Path, help="take over the presets of llama.cpp's router"
    )
    parser.add_argument("--ctx", metavar="N", type=_count, help="tokens of context (default: chosen from the file)")
    parser.add_argument("--embedding", action="store_true", help="for embeddings, also if the file does not say so")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, beside any other model")
    parser.add_argument("--vram", metavar="GIB", type=_size, help="GiB of the card, to reckon what goes on it")
    parser.add_argument("--no-try", action="store_true", help="do not load it and ask it a question")
    parser.add_argument("--dry-run", action="store_true", help="show what would be written; change nothing")
    parser.add_argument("--config", metavar="FILE", help="the proxy's config; as for serve")


def run(arguments: argparse.Namespace) -> int:
    """DONE once the model has answered."""
    console.accept_any_text()
    if wrong := _what_is_wrong(arguments):
        return complain(wrong, USAGE)
    try:
        return _run(arguments)
    except ConfigError as error:
        return complain(config_problem(arguments, error), FAILED)
    except (SetupError, Refused) as error:
        return complain(str(error), FAILED)
    except NoProxy as error:
        return complain(str(error), NO_PROXY)
    except OSError as error:
        return complain(f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}", FAILED)
    except KeyboardInterrupt:
        is_known = arguments.name in known_models(find(arguments.config, os.environ))
        state = "is added already" if is_known else "was not added"
        return complain(f"interrupted; {arguments.name or 'the rest'} {state}", FAILED)


def _run(arguments: argparse.Namespace) -> int:
    adder = Adder.of(arguments, os.environ)
    if arguments.name is None:
        return take_over.run(adder, arguments.from_llama_swap, arguments.from_presets)
    wishes = Wishes(arguments.ctx, arguments.embedding, arguments.cpu, arguments.vram, tuple(arguments.rest))
    adder.add(Source(arguments.name, arguments.file, arguments.hf_repo or "", wishes))
    return DONE


def _what_is_wrong(arguments: argparse.Namespace) -> str:
    """Empty for a usable command line."""
    others = [it for it in (arguments.from_llama_swap, arguments.from_presets) if it is not None]
    own = (arguments.name, arguments.file, arguments.hf_repo, arguments.ctx, arguments.vram)
    if not others:
        has_one = (arguments.file is None) != (arguments.hf_repo is None)
        return (
            "" if arguments.name is not None and has_one else "name a model and its GGUF file, or a repository with -hf"
        )
    if len(others) > 1 or any(it is not None for it in own) or arguments.embedding or arguments.cpu or arguments.rest:
        return "--from-llama-swap and --from-presets take no name, no file and no flags: all of it is in their file"
    return ""


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text[:12]) <= 100_000_000:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of tokens")
    return int(text)


def _size(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 10_000:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of GiB")
    return size
