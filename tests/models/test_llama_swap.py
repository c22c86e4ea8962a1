"""What is read out of a config of llama-swap, and what of it has no counterpart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from models.found import one, reason
from systemd_llm_switch.models.foreign import Found
from systemd_llm_switch.models.llama_swap import read
from systemd_llm_switch.setup.places import SetupError
from systemd_llm_switch.setup.server_flags import ServerFlags

HELP = """\
-h,    --help, --usage                  print usage and exit
-c,    --ctx-size N                     size of the prompt context
                                        (env: LLAMA_ARG_CTX_SIZE)
-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers to store in VRAM
                                        (env: LLAMA_ARG_N_GPU_LAYERS)
-m,    --model FNAME                    model path to load
                                        (env: LLAMA_ARG_MODEL)
-hf,   -hfr, --hf-repo <user>/<model>[:quant]
                                        Hugging Face model repository
--mmproj FILE                           path to a multimodal projector file
-a,    --alias STRING                   set model name aliases
--tags STRING                           set model tags
--host HOST                             ip address to listen
--port PORT                             port to listen
--api-key KEY                           API key to use
--slot-save-path PATH                   path to save slot kv cache
--metrics                               enable prometheus metrics
--embedding, --embeddings               restrict to embeddings
--reranking, --rerank                   enable reranking
-lm,   --load-mode MODE                 model loading mode
--cache-ram N                           cache size in MiB
                                        (env: LLAMA_ARG_CACHE_RAM)
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        whether to enable KV cache offloading
                                        (env: LLAMA_ARG_KV_OFFLOAD)
--jinja, --no-jinja                     whether to use jinja
--temp N                                temperature
-hff,  --hf-file FILE                   Hugging Face model file
"""
KNOWN = ServerFlags.read(HELP)

Reader = Callable[..., Found]


@pytest.fixture
def found(tmp_path: Path) -> Reader:
    """What a text holds."""

    def read_text(text: str, **environ: str) -> Found:
        file = tmp_path / "llama-swap.yaml"
        file.write_text(text)
        return read(file, KNOWN, environ)

    return read_text


def test_a_command_becomes_a_file_and_its_flags(found: Reader) -> None:
    model = one(found("models:\n  m:\n    cmd: llama-server --port ${PORT} -m /m/a.gguf -ngl 99 --jinja\n"))
    assert (model.name, model.file, model.repo) == ("m", Path("/m/a.gguf"), "")
    assert model.wishes.flags == ("-ngl", "99", "--jinja")
    assert model.wishes.is_whole_command


def test_comments_lines_and_quotes_of_a_command(found: Reader) -> None:
    text = """\
models:
  m:
    cmd: |
      # the usual one
      /opt/x/llama-server-ec9e0301 --port ${PORT} \\
        --host 0.0.0.0
      --model '/m/two words.gguf'
        # --ctx-size 1
      --ctx_size 8192
"""
    model = one(found(text))
    assert model.file == Path("/m/two words.gguf")
    assert model.wishes.flags == ("--ctx-size", "8192")


def test_macros_of_the_file_of_the_model_and_of_the_environment(found: Reader) -> None:
    text = """\
macros:
  server: "llama-server --port ${PORT} ${args}"
  args: "-c ${ctx}"
  ctx: 4096
models:
  big/one:
    macros: {ctx: 16384}
    cmd: "${server} -m ${env.MODELS}/${MODEL_ID}.gguf"
"""
    model = one(found(text, MODELS="/srv"))
    assert model.file == Path("/srv/big/one.gguf")
    assert model.wishes.flags == ("-c", "16384")


@pytest.mark.parametrize(
    ("cmd", "expected"),
    [
        ("llama-server -m ${nothing}", "there is no macro nothing"),
        ("llama-server -m ${env.NOTHING}", "the environment has no NOTHING"),
        ("docker run -p ${PORT}:8080 image -m a.gguf", "runs in a container (docker)"),
        ("/usr/bin/podman run image", "runs in a container (podman)"),
        ("bash -c 'llama-server -m a.gguf'", "only llama-server can be taken over"),
        ("vllm serve x", "only llama-server can be taken over"),
        ("llama-server --port 1", "names no model"),
        ("llama-server -m a.gguf stray", "'stray' where a flag belongs"),
        ("llama-server -hf a/b -hff c.gguf", "name the quantisation"),
        ("llama-server --models-dir /m", "starts a router"),
        ("llama-server -m a.gguf --chat-template ${env.MY_TOKEN}", "its --chat-template looks like a secret"),
        ("llama-server -m 'a.gguf", "the quotes of its command do not match"),
        ("''", "only llama-server can be taken over"),
    ],
)
def test_what_cannot_be_taken_over_says_why(found: Reader, cmd: str, expected: str) -> None:
    assert expected in reason(found(f'models:\n  m:\n    cmd: "{cmd}"\n', MY_TOKEN="hidden-word"))


def test_a_model_without_a_command(found: Reader) -> None:
    assert "no `cmd`" in reason(found("models:\n  m: {ttl: 5}\n"))
    assert "no `cmd`" in reason(found("models:\n  m: 5\n"))


@pytest.mark.parametrize(
    ("usual", "own", "ttl"), [("", "60", 60), ("globalTTL: 30\n", "-1", 30), ("globalTTL: 30\n", "0", None)]
)
def test_the_idle_time_becomes_ours(found: Reader, usual: str, own: str, ttl: int | None) -> None:
    model = one(found(f"{usual}models:\n  m:\n    ttl: {own}\n    cmd: llama-server -m a.gguf\n"))
    assert model.entry == ({"ttl": ttl} if ttl else {})


def test_a_secret_of_the_environment_gets_into_no_unit(found: Reader) -> None:
    text = """\
macros: {flash: on}
models:
  m:
    cmd: llama-server -m /a.gguf --flash-attn ${flash} --api-key ${env.MY_API_KEY}
    env: ["AUTH=${env.MY_API_KEY}"]
"""
    model = one(found(text, MY_API_KEY="hidden-word"))
    assert model.wishes.flags == ("--flash-attn", "on")
    assert model.environment == ()
    assert "env AUTH: it looks like a secret" in "\n".join(model.lost)
    assert "hidden-word" not in repr(model)


def test_aliases_environment_and_set_parameters(found: Reader) -> None:
    text = """\
models:
  m:
    cmd: llama-server -m /a.gguf
    aliases: [gpt-4o, "${MODEL_ID}-2"]
    env: ["CUDA_VISIBLE_DEVICES=0,1", "HF_TOKEN=hidden-word", "no equals sign"]
    filters: {setParams: {temperature: 0.7}, stripParams: "top_p"}
"""
    model = one(found(text))
    assert model.aliases == ("gpt-4o", "m-2")
    assert model.environment == ("CUDA_VISIBLE_DEVICES=0,1",)
    assert model.entry == {"force": {"temperature": 0.7}}
    lost = "\n".join(model.lost)
    assert "env HF_TOKEN: it looks like a secret" in lost
    assert "hidden-word" not in lost
    assert "no equals sign" in lost
    assert "filters.stripParams" in lost


def test_what_has_no_counterpart_is_named(found: Reader) -> None:
    text = """\
healthCheckTimeout: 500
logLevel: debug
hooks: {on_startup: {preload: [m]}}
groups: {g: {members: [m]}}
routing: {router: {use: matrix}}
selectors: {s: {strategy: warm}}
models:
  m:
    cmd: llama-server -m /a.gguf --api-key hidden-word --slot-save-path /x
    cmdStop: docker stop m
    checkEndpoint: /v1/models
    name: "A name"
"""
    found_all = found(text)
    of_file, of_model = "\n".join(found_all.lost), "\n".join(one(found_all).lost)
    for word in ("server.health_timeout", "server.preload", "groups: ", "routing: ", "selectors"):
        assert word in of_file
    assert "logLevel" not in of_file
    for word in ("cmdStop", "name", "checkEndpoint '/v1/models'", "--api-key: ", "--slot-save-path: "):
        assert word in of_model
    assert "hidden-word" not in of_file + of_model


def test_a_flag_that_newer_builds_have_replaced(found: Reader) -> None:
    model = one(found("models:\n  m:\n    cmd: llama-server -m /a.gguf --mlock\n"))
    assert model.wishes.flags == ("--load-mode", "mlock")


@pytest.mark.parametrize(("flag", "is_embedding"), [("--embeddings", True), ("--reranking", False)])
def test_what_a_model_is_for(found: Reader, flag: str, is_embedding: bool) -> None:
    wishes = one(found(f"models:\n  m:\n    cmd: llama-server -m /a.gguf {flag}\n")).wishes
    assert (wishes.is_embedding, wishes.is_reranking) == (is_embedding, not is_embedding)


def test_a_repository_instead_of_a_file(found: Reader) -> None:
    model = one(found("models:\n  m:\n    cmd: llama-server -hf org/repo:Q4_K_M\n"))
    assert (model.file, model.repo) == (None, "org/repo:Q4_K_M")


HOSTILE = {
    "not YAML": "models: [",
    "a list": "- a\n",
    "no models": "server:\n  port: 3002\n",
    "nothing": "",
    "aliases that grow": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{new}: &{new} [*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old}]\n"
              for old, new in zip("abcdefg", "bcdefgh", strict=True)),
    "too large": "models:\n" + "# x\n" * 300_000,
    "deep": "[" * 10_000,
    "many models": "models:\n" + "".join(f"  m{at}: {{cmd: x}}\n" for at in range(1100)),
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_cannot_be_read_is_refused_as_a_whole(found: Reader, text: str) -> None:
    with pytest.raises(SetupError):
        found(text)


@pytest.mark.parametrize(
    ("macros", "expected"),
    [
        ({"x": "${x}"}, "contain each other"),
        ({"x": "${y}", "y": "${x}"}, "contain each other"),
        ({"x": "${y}" * 1000, "y": "${z}" * 1000, "z": "words"}, "grow to more than"),
        ({"x": "-c 1 " * 300}, "more than 1000 words"),
    ],
)
def test_macros_are_bounded(found: Reader, macros: dict[str, str], expected: str) -> None:
    defined = "".join(f'  {name}: "{value}"\n' for name, value in macros.items())
    cmd = "llama-server ${x} ${x}"
    assert expected in reason(found(f"macros:\n{defined}models:\n  m:\n    cmd: {cmd}\n"))


def test_a_file_that_is_none_does_not_block(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="not a regular file"):
        read(Path("/dev/zero"), KNOWN, {})
    with pytest.raises(SetupError, match="cannot read"):
        read(tmp_path / "none.yaml", KNOWN, {})
