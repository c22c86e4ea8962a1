"""`llm-switch add`: a model of one's own, from a GGUF file to its first answer."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from systemd_llm_switch.command.exits import DONE, FAILED, NO_PROXY, USAGE
from systemd_llm_switch.command.fetch import fetch
from systemd_llm_switch.command.first_answer import check_ready, first_answer
from systemd_llm_switch.command.proxy_client import NoProxy, ProxyClient, Refused, client_of, complain, configured
from systemd_llm_switch.config.file import find
from systemd_llm_switch.config.records import ConfigError
from systemd_llm_switch.models import adding, config_entry, planning
from systemd_llm_switch.models.flags import Wishes
from systemd_llm_switch.models.planning import Plan
from systemd_llm_switch.setup import console
from systemd_llm_switch.setup.places import Places, SetupError
from systemd_llm_switch.setup.systemctl import Systemctl
from systemd_llm_switch.setup.user_manager import UserManager, is_reachable

TAKES_REST = True  # what follows `--` is llama-server's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s NAME FILE.gguf | -hf REPO[:QUANT] [options] [-- LLAMA-SERVER-FLAGS]"
    parser.add_argument("name", metavar="NAME", help="what clients will send as `model`")
    parser.add_argument(
        "file", metavar="FILE.gguf", nargs="?", type=Path, help="the model; the first part of a split one"
    )
    parser.add_argument("-hf", "--hf-repo", metavar="REPO[:QUANT]", help="download it from Hugging Face instead")
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
    if (arguments.file is None) == (arguments.hf_repo is None):
        return complain("name either a GGUF file, or a repository with -hf", USAGE)
    try:
        return _run(arguments)
    except ConfigError as error:
        return complain(f"the config cannot be used: {error}", FAILED)
    except (SetupError, Refused) as error:
        return complain(str(error), FAILED)
    except NoProxy as error:
        return complain(str(error), NO_PROXY)
    except OSError as error:
        return complain(f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}", FAILED)
    except KeyboardInterrupt:
        return complain(f"interrupted; {arguments.name} was not added", FAILED)


def _run(arguments: argparse.Namespace) -> int:
    places = Places.of(os.environ)
    config_path = find(arguments.config, os.environ).absolute()
    systemd = reach_manager(places)
    is_tried = not (arguments.no_try or arguments.dry_run)
    client = client_of(configured(arguments)) if is_tried else None
    if client:
        check_ready(client, config_path)
    wishes = Wishes(arguments.ctx, arguments.embedding, arguments.cpu, arguments.vram, tuple(arguments.rest))
    file = arguments.file
    if file is None:
        planning.check_possible(arguments.name, config_path, places, os.environ, systemd)
        file = fetch(arguments.hf_repo, places, os.environ, is_dry=arguments.dry_run)
        if file is None:
            return DONE
    plan = planning.plan(arguments.name, file.absolute(), wishes, config_path, places, os.environ, systemd)
    _show(plan, places, is_dry=arguments.dry_run)
    if arguments.dry_run:
        return DONE
    if systemd is None:
        raise SetupError("no systemd user manager answers, so a unit cannot be added here; log in as a normal user")
    adding.add(plan, places, systemd, lambda: _use(client, plan))
    return DONE


def _use(client: ProxyClient | None, plan: Plan) -> None:
    if client:
        first_answer(client, plan.name, plan.purpose)
        console.done(f"{plan.name} is added")
    else:
        console.done(f"{plan.name} is added; `llm-switch load {plan.name}` loads it")


def _show(plan: Plan, places: Places, *, is_dry: bool) -> None:
    facts = plan.facts
    kind = f"{facts.architecture}, {len(facts.layers)} layers" + (f", {facts.experts} experts" if facts.experts else "")
    console.heading(f"{plan.name}: {facts.name or facts.path.name} ({kind}, {facts.size / 1e9:.2f} GB)")
    console.note(f"for {plan.purpose.value}")
    for choice in plan.choices:
        console.note(f"{' '.join(choice.words)}: {choice.why}")
    if is_dry:
        console.heading(f"{places.short(places.linked / plan.unit)} would be:")
        console.plain(plan.unit_text)
        console.heading(f"{places.short(plan.target)} would get:")
        console.plain(config_entry.entry(plan.name, dict(plan.entry)))


def reach_manager(places: Places) -> Systemctl | None:
    """The user manager: the demo's private one if that runs, else the usual one; None if none answers."""
    private = UserManager.of_home(places.home)
    systemd = Systemctl(private.env) if private else Systemctl.of(os.environ)
    return systemd if is_reachable(dict(systemd.env)) else None


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
