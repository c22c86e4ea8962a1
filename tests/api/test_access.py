"""Who may drive the proxy: keys, web pages, names, and how long a slow sender may hold up others."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from support.stack import ROOT, Answer, Proxy, Stack, chat, free_port, wait_for
from systemd_llm_switch.api.access import Access, host_name
from systemd_llm_switch.config.parse import parse
from systemd_llm_switch.config.records import ConfigError
from systemd_llm_switch.errors import ForbiddenOrigin
from systemd_llm_switch.openai.endpoints import FORWARDED
from systemd_llm_switch.setup.user_manager import UserManager

CHAT = "/v1/chat/completions"
KEY, FILE_KEY, UMLAUT_KEY = "sk-in-the-config", "sk-in-the-file", "schlüssel-für-alle"
PAGE = "https://chat.example.org"
ROUTES = [
    *(("POST", path) for path in FORWARDED),
    *(("GET", path) for path in ("/v1/models", "/models", "/v1/models/a", "/api/status", "/upstream/a/props")),
    *(("POST", path) for path in ("/api/load", "/api/unload", "/models/load", "/models/unload")),
    *(("POST", path) for path in ("/api/hold", "/api/release", "/upstream/a/slots")),
]  # fmt: skip


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def assert_no_key(answer: Answer) -> None:
    error = answer.error
    assert (answer.status, error["code"]) == (401, "invalid_api_key")
    assert error["type"] in ("invalid_request_error", "authentication_error")  # the second is Anthropic's word
    assert answer.headers["www-authenticate"] == "Bearer"


def assert_forbidden(answer: Answer) -> None:
    error = answer.error
    assert (answer.status, error["type"], error["code"]) == (403, "invalid_request_error", "forbidden_origin")


def preflight(proxy: Proxy, origin: str, path: str = CHAT, **headers: str) -> Answer:
    """What a browser asks before it sends a page's request."""
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", **headers}
    return proxy.request("OPTIONS", path, headers=asked)


@contextlib.contextmanager
def connection(proxy: Proxy, data: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as sock:
        sock.sendall(data)
        yield sock


def raw(proxy: Proxy, host: str | None, path: str = "/v1/models", **headers: str) -> Answer:
    """An HTTP/1.0 request with exactly these headers; `host` None sends no Host at all."""
    lines = [f"GET {path} HTTP/1.0", *([] if host is None else [f"Host: {host}"])]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with connection(proxy, ("\r\n".join(lines) + "\r\n\r\n").encode()) as sock, sock.makefile("rb") as file:
        status = int(file.readline().split()[1])
        seen = {}
        while (line := file.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            seen[name.lower()] = value.strip()
        return Answer(status, seen, file.read())


@pytest.fixture(scope="module")
def bed(manager: UserManager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for all tests that only ask."""
    stack = Stack(manager.env, tmp_path_factory.mktemp("access"), "access")
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def keyed(bed: Stack) -> Proxy:
    """A proxy that wants a key, and serves one page of another site."""
    (bed.folder / "keys").write_text(f"# a comment\n{FILE_KEY}\n{UMLAUT_KEY}\n", encoding="utf-8")
    models = {"a": bed.standin("a")}
    return bed.run(models, api_keys=[KEY], api_keys_file="keys", cors_origins=[f"{PAGE.upper()}/"])


@pytest.fixture(scope="module")
def keyless(bed: Stack, keyed: Proxy) -> Proxy:
    """A proxy without keys, as on a desktop; beside `keyed`, with the same model."""
    config = bed.folder / "keyless.yaml"
    server = {"llama_url": f"http://127.0.0.1:{bed.port}", "allowed_hosts": ["My-Box.lan", "[fd00::5]", "fd00::6"]}
    config.write_text(json.dumps({"server": server, "models": {"a": f"{bed.prefix}-a.service"}}))
    return bed.start_proxy("--config", str(config))


@pytest.fixture(scope="module")
def dripping(bed: Stack, keyless: Proxy) -> Iterator[Future[tuple[float, int, int]]]:
    """Senders of a byte now and then, of headers or of a body, at a proxy of their own, as long as there are any of
    headers: after how many seconds that was, and how many there are of either then."""
    proxy = bed.start_proxy("--config", str(bed.folder / "keyless.yaml"))

    def drip() -> tuple[float, int, int]:
        with contextlib.ExitStack() as held:
            heads = [held.enter_context(connection(proxy, SLOW["headers"])) for _ in range(20)]
            bodies = [held.enter_context(connection(proxy, SLOW["a body"])) for _ in range(200)]
            began = time.monotonic()
            while heads and time.monotonic() - began < 20:
                heads, bodies = list(filter(_drip, heads)), list(filter(_drip, bodies))
                time.sleep(0.2)
            return time.monotonic() - began, len(heads), len(bodies)

    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(drip)


@pytest.fixture(autouse=True, scope="module")
def _begin_to_drip(dripping: Future[tuple[float, int, int]]) -> None:
    """Their time runs beside the other tests."""


# --- keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_wants_a_key(keyed: Proxy, method: str, path: str) -> None:
    body = chat("a") if method == "POST" else None
    assert_no_key(keyed.request(method, path, body))
    assert_no_key(keyed.request(method, path, body, bearer("sk-wrong")))
    assert keyed.request(method, path, body, bearer(KEY)).status not in (401, 403, 500)


@pytest.mark.parametrize("path", ["/nope", "/v1/nope", "/health/", "/health/../api/status", "/healt"])
def test_every_route_that_is_not_open_needs_a_key(keyed: Proxy, path: str) -> None:
    """Nobody learns which routes there are."""
    assert_no_key(keyed.get(path))


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD", "PUT", "DELETE", "BREW"])
def test_no_method_gets_around_the_key(keyed: Proxy, method: str) -> None:
    for headers in ({}, {"Access-Control-Request-Method": "POST"}):
        answer = keyed.request(method, CHAT, headers=headers)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_health_stays_open(keyed: Proxy) -> None:
    """For whatever watches the proxy; a wrong key does not matter to it."""
    for headers in ({}, bearer("sk-wrong")):
        assert keyed.get("/health", headers=headers).json == {"status": "ok"}


@pytest.mark.parametrize("key", [KEY, FILE_KEY, UMLAUT_KEY])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_right_key_is_let_in(keyed: Proxy, key: str, scheme: str) -> None:
    """From the config or the file; the scheme's spelling does not matter (RFC 9110, 11.1)."""
    headers = {"Authorization": f"{scheme}  {key} ".encode()}
    assert keyed.request("GET", "/v1/models", headers=headers).status == 200  # type: ignore[arg-type]


WRONG = {
    "empty": "", "scheme alone": "Bearer", "no key": "Bearer ", "no scheme": KEY, "basic": f"Basic {KEY}",
    "prefix": f"Bearer {KEY[:-1]}", "longer": f"Bearer {KEY}x", "other case": f"Bearer {KEY.upper()}",
    "two": f"Bearer {KEY} {FILE_KEY}", "list": f"Bearer {KEY},{FILE_KEY}", "comment": "Bearer # a comment",
    "quoted": f'Bearer "{KEY}"', "first letter": f"Bearer {KEY[0]}",
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_key_is_refused(keyed: Proxy, kind: str) -> None:
    assert_no_key(keyed.get("/v1/models", headers={"Authorization": WRONG[kind]}))


def test_a_key_is_not_taken_from_elsewhere(keyed: Proxy) -> None:
    """A query ends up in logs, a cookie is sent by any page."""
    assert_no_key(keyed.get(f"/v1/models?api_key={KEY}&key={KEY}"))
    assert_no_key(keyed.get("/v1/models", headers={"Cookie": f"api_key={KEY}", "Api-Key": KEY}))


@pytest.mark.parametrize("key", [KEY, FILE_KEY, UMLAUT_KEY])
def test_a_key_may_come_as_anthropics_clients_send_it(keyed: Proxy, key: str) -> None:
    headers: dict[str, Any] = {"x-api-key": f" {key}".encode()}
    assert keyed.get("/v1/models", headers=headers).status == 200
    assert keyed.get("/v1/models", headers={**headers, **bearer("sk-wrong")}).status == 200


def test_a_wrong_key_is_refused_wherever_it_stands(keyed: Proxy) -> None:
    for headers in ({"x-api-key": ""}, {"x-api-key": KEY[:-1]}, {"x-api-key": "x", **bearer("sk-wrong")}):
        assert_no_key(keyed.get("/v1/models", headers=headers))


def test_a_stream_is_refused_with_its_status(keyed: Proxy) -> None:
    assert_no_key(keyed.post(CHAT, chat("a", stream=True)))


def test_keys_never_reach_a_log_the_status_or_the_backend(keyed: Proxy, bed: Stack) -> None:
    """Not in whatever way a request goes wrong, either."""
    wrong = "sk-almost-right"
    for key in (KEY, FILE_KEY, wrong):
        for method, path in ROUTES:
            if path not in ("/api/hold", "/api/unload", "/models/unload"):
                keyed.request(method, path, chat("a", standin={"status": 500}), bearer(key))
                keyed.request(method, path, b"{", {**bearer(key), "Origin": "https://evil.example"})
        with connection(keyed, f"GET /v1/models\r\nAuthorization: Bearer {key}\r\n\r\n".encode()) as sock:
            assert b"400" in sock.recv(100)
    status = keyed.get("/api/status", headers=bearer(KEY)).body.decode()
    seen = json.dumps(bed.seen())
    assert "Authorization" not in seen
    for key in (KEY, FILE_KEY, wrong):
        assert key not in keyed.log
        assert key not in status
        assert key not in seen


def test_a_broken_config_is_reported_without_its_keys(stack: Stack) -> None:
    """YAML's own words would quote the line."""
    proxy = stack.run({"a": stack.standin("a")}, api_keys=["sk-old"])
    good = stack.config_path.read_text()
    for broken in ("server: {api_keys: [sk-secret\nmodels: x", "server:\n  api_keys: [sk-secret, 'sk-secret]\n"):
        stack.config_path.write_text(broken)
        error = proxy.get("/api/status", headers=bearer("sk-old")).json["config"]["error"]
        assert "is not valid YAML" in error
        assert "line 2" in error or "line 3" in error
        assert "sk-secret" not in error
        stack.config_path.write_text(good)
        assert proxy.get("/v1/models", headers=bearer("sk-old")).status == 200
    assert "config_broken" in proxy.log
    assert "sk-secret" not in proxy.log


def test_a_changed_key_file_takes_effect_at_the_next_request(stack: Stack) -> None:
    """A key that is taken out is refused at once; one that is broken or missing leaves the last good keys."""
    keys = stack.folder / "keys"
    keys.write_text("one\n")
    proxy = stack.run({"a": stack.standin("a")}, api_keys_file=str(keys))
    assert proxy.get("/v1/models", headers=bearer("one")).status == 200
    keys.write_text("two\n")
    assert_no_key(proxy.get("/v1/models", headers=bearer("one")))
    assert proxy.get("/v1/models", headers=bearer("two")).status == 200
    for break_it in (lambda: keys.write_text("# nothing\n"), keys.unlink):
        break_it()
        assert_no_key(proxy.get("/v1/models", headers=bearer("one")))
        told = proxy.get("/api/status", headers=bearer("two"))
        assert (told.status, "server.api_keys_file" in told.json["config"]["error"]) == (200, True)
    keys.write_text("three\n")
    assert_no_key(proxy.get("/v1/models", headers=bearer("two")))
    assert proxy.get("/api/status", headers=bearer("three")).json["config"]["error"] is None


def test_a_key_file_that_comes_after_the_config_is_seen(stack: Stack) -> None:
    """Edited in this order, the config is not good before the file is there; then it is, with no other edit."""
    unit = stack.standin("a")
    proxy = stack.run({"a": unit})
    stack.write_config({"a": unit}, api_keys_file="late-keys")
    assert "late-keys: No such file" in proxy.status()["config"]["error"]
    (stack.folder / "late-keys").write_text("late\n")
    assert_no_key(proxy.get("/v1/models"))
    assert proxy.get("/v1/models", headers=bearer("late")).status == 200


@pytest.fixture
def shared_runtime_folder(manager: UserManager) -> Iterator[None]:
    """systemd mounts credentials in a namespace of its own, from where they spread only over shared mounts. They are
    that where systemd is PID 1; in a container they may be private, so the manager's own folder is made shared."""
    folder = str(manager.runtime_dir)
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "--make-shared", folder], check=True)
    yield
    subprocess.run(["umount", "--recursive", "--lazy", folder], check=True)


@pytest.mark.usefixtures("shared_runtime_folder")
def test_keys_come_as_a_systemd_credential(stack: Stack) -> None:
    """LoadCredential= and `${CREDENTIALS_DIRECTORY}/keys`: the file itself may be closed to the proxy's config."""
    secret = stack.folder / "secret"
    secret.write_text("sk-credential\n")
    stack.write_config({"a": stack.standin("a")}, api_keys_file="${CREDENTIALS_DIRECTORY}/keys")
    port = free_port()
    command = [sys.executable, "-m", "systemd_llm_switch", "--config", str(stack.config_path), "--port", str(port)]
    service = f"Environment=PYTHONPATH={ROOT / 'src'}\nLoadCredential=keys:{secret}"
    unit = stack.unit("proxy", shlex.join(command), service=service)
    stack.systemctl("start", unit)
    proxy = Proxy(port, None, stack.folder)  # type: ignore[arg-type]

    def is_up() -> bool:
        with contextlib.suppress(OSError):
            return proxy.get("/health").status == 200
        return False

    wait_for(is_up)
    assert_no_key(proxy.get("/v1/models"))
    assert proxy.get("/v1/models", headers=bearer("sk-credential")).status == 200


def test_without_the_credential_the_reason_is_reported(stack: Stack) -> None:
    """As at the shell, where --check is run."""
    stack.write_config({"a": "a.service"}, api_keys_file="${CREDENTIALS_DIRECTORY}/keys")
    checked = run_command(stack, "--check")
    assert checked.returncode == 1
    assert "systemd sets $CREDENTIALS_DIRECTORY for the unit alone" in checked.stderr


def run_command(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "systemd_llm_switch", "--config", str(stack.config_path), *arguments]
    env = {**stack.env, "PYTHONPATH": str(ROOT / "src")}
    env.pop("CREDENTIALS_DIRECTORY", None)
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=20)


# --- open to the network ----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_without_keys_only_loopback_is_listened_on(stack: Stack, host: str) -> None:
    """By config or by --host; the message says what may be done about it."""
    models = {"a": "a.service"}
    for server, arguments in (({"host": host}, ()), ({}, ("--host", host))):
        stack.write_config(models, **server)
        ended = run_command(stack, *arguments, "--port", str(free_port()))
        assert ended.returncode == 1
        for word in (host, "api_keys", "api_keys_file", "allow_unauthenticated: true"):
            assert word in ended.stderr
        assert "Traceback" not in ended.stderr


def test_an_address_that_cannot_be_bound_is_reported(stack: Stack) -> None:
    stack.write_config({"a": "a.service"}, allow_unauthenticated=True)
    for host in ("192.0.2.1", "no-such-name.invalid"):
        ended = run_command(stack, "--host", host, "--port", str(free_port()))
        assert ended.returncode == 1
        assert f"cannot listen on {host}" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert "listening on" not in ended.stderr


@pytest.mark.parametrize("server", [{"api_keys": [KEY]}, {"allow_unauthenticated": True}])
def test_with_keys_or_on_purpose_the_network_is_listened_on(stack: Stack, server: dict[str, Any]) -> None:
    """Then any address of the machine is answered to; a page of another site is still refused."""
    stack.write_config({"a": stack.standin("a")}, host="0.0.0.0", **server)
    proxy = stack.start_proxy()
    assert f"listening on http://0.0.0.0:{proxy.port}" in proxy.log
    answer = raw(proxy, "192.168.1.5")
    assert answer.status == (200 if "allow_unauthenticated" in server else 401)
    assert_forbidden(proxy.get("/v1/models", headers={"Origin": "https://evil.example", **bearer(KEY)}))


def test_keys_taken_out_at_run_time_do_not_open_the_network(stack: Stack) -> None:
    """The proxy listens on already; but it lets nobody in any more."""
    unit = stack.standin("a")
    stack.write_config({"a": unit}, api_keys=[KEY])
    proxy = stack.start_proxy("--host", "0.0.0.0")
    stack.write_config({"a": unit})
    for headers in ({}, bearer(KEY)):
        assert_no_key(proxy.get("/v1/models", headers=headers))
    assert proxy.get("/health").status == 200


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_the_other_loopback_is_listened_on(stack: Stack, host: str) -> None:
    """Spelt as in a URL, too."""
    stack.write_config({"a": "a.service"}, host=host)
    proxy = stack.start_proxy(wait=False)
    wait_for(lambda: f"listening on http://[::1]:{proxy.port} " in proxy.log)
    with socket.create_connection(("::1", proxy.port), timeout=10) as sock:
        sock.sendall(f"GET /health HTTP/1.0\r\nHost: [::1]:{proxy.port}\r\n\r\n".encode())
        assert b" 200 OK" in sock.recv(100)


# --- pages of other sites ---------------------------------------------------------------------------

FOREIGN = (
    "https://evil.example", "http://chat.example.org", "https://chat.example.org:8443", "https://a.chat.example.org",
    "https://chat.example.org.evil.example", "http://localhost:8080", "http://127.0.0.1", "null", "", "*", "x",
    "http://[", "https://evil.example https://chat.example.org",
)  # fmt: skip


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_foreign_page_is_refused(keyed: Proxy, origin: str) -> None:
    """With a key or without, whatever it asks for; and its browser is told nothing that it may read."""
    for path in ("/health", "/v1/models", "/api/status"):
        for headers in ({}, bearer(KEY)):
            answer = keyed.get(path, headers={"Origin": origin, **headers})
            assert_forbidden(answer)
            assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert_forbidden(preflight(keyed, origin))


@pytest.mark.parametrize("path", ["/api/unload", "/api/hold", "/api/load", CHAT])
def test_a_visited_page_cannot_use_a_proxy_without_keys(keyless: Proxy, path: str) -> None:
    """A form or a no-cors fetch needs no preflight: its Origin alone gives it away."""
    before = keyless.status()["switches"]
    for origin in ("https://evil.example", "null", f"http://localhost:{keyless.port + 1}"):
        headers = {"Origin": origin, "Content-Type": "text/plain"}
        assert_forbidden(keyless.post(path, chat("a"), headers=headers))
    assert keyless.status()["switches"] == before
    assert keyless.status()["on_hold"] is False


def test_a_page_of_the_own_address_is_allowed(keyless: Proxy) -> None:
    """A page that the proxy itself, or a server in front of it, serves at the same name."""
    for name in (f"127.0.0.1:{keyless.port}", f"localhost:{keyless.port}", "my-box.lan"):
        assert raw(keyless, name, Origin=f"http://{name}").status == 200
        assert_forbidden(raw(keyless, name, Origin="http://localhost:1"))
    assert_forbidden(raw(keyless, "", Origin="null"))


def test_a_listed_page_may_read_answers(keyed: Proxy) -> None:
    headers = {"Origin": PAGE, **bearer(KEY)}
    for answer in (
        keyed.get("/v1/models", headers=headers),
        keyed.post(CHAT, chat("a"), headers=headers),
        keyed.post(CHAT, chat("a", stream=True), headers=headers),
        keyed.post(CHAT, chat("a", stream=True, standin={"delay_s": 2.2}), headers=headers),
    ):
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "Origin" in answer.headers["vary"]
        assert "X-LLM-Switch-Repaired" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers


def test_a_listed_page_may_read_errors(keyed: Proxy) -> None:
    """Or it could only tell its user that something failed."""
    headers = {"Origin": PAGE, **bearer(KEY)}
    for answer, status in (
        (keyed.get("/v1/models", headers={"Origin": PAGE}), 401),
        (keyed.get("/nope", headers=headers), 404),
        (keyed.get(CHAT, headers=headers), 405),
        (keyed.post(CHAT, b"{", headers=headers), 400),
        (keyed.post(CHAT, chat("nope"), headers=headers), 404),
        (keyed.post(CHAT, chat("a", standin={"status": 500}), headers=headers), 500),
        (keyed.post(CHAT, b" " * 65_000_000, headers=headers), 413),  # refused before it was read
    ):
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == PAGE


def test_a_preflight_needs_no_key_and_reaches_no_model(keyed: Proxy, bed: Stack) -> None:
    """A browser sends none along with it."""
    assert keyed.post(CHAT, chat("a"), headers=bearer(KEY)).status == 200  # the model is loaded, and counts
    before = bed.seen()["requests"]
    for path in (CHAT, "/v1/models", "/nope"):
        asked = {"Access-Control-Request-Headers": "authorization, content-type, x-stainless-os"}
        answer = preflight(keyed, PAGE, path, **asked)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["access-control-allow-headers"] == "authorization, content-type, x-stainless-os"
        assert {"GET", "POST"} <= set(answer.headers["access-control-allow-methods"].split(", "))
        assert int(answer.headers["access-control-max-age"]) > 0
        assert "content-length" not in answer.headers  # RFC 9110, 8.6
    assert bed.seen()["requests"] == before


def test_what_only_looks_like_a_preflight_wants_a_key(keyed: Proxy) -> None:
    assert_no_key(keyed.request("OPTIONS", CHAT, headers={"Origin": PAGE}))
    assert_no_key(keyed.post(CHAT, chat("a"), headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"}))


@pytest.mark.parametrize("listed", ["http://localhost:8080", "http://127.0.0.1:8080", "http://[::1]:8080"])
def test_a_page_on_loopback_is_listed_under_all_of_its_names(listed: str) -> None:
    """Which of them its person types, the config cannot know."""
    access = Access(parse({"server": {"cors_origins": [listed]}, "models": {"a": "a.service"}}).server, "127.0.0.1")
    for name in ("localhost", "127.0.0.1", "[::1]"):
        origin = f"http://{name}:8080"
        assert dict(access.cors_headers({"HTTP_ORIGIN": origin}))["Access-Control-Allow-Origin"] == origin
    for origin in ("http://localhost", "http://localhost:8081", "https://localhost:8080", "http://localhost.evil:8080"):
        assert access.cors_headers({"HTTP_ORIGIN": origin}) == ()


def test_a_page_reads_how_long_things_took(keyed: Proxy) -> None:
    exposed = keyed.get("/v1/models", headers={"Origin": PAGE, **bearer(KEY)}).headers["access-control-expose-headers"]
    assert {"Server-Timing", "Retry-After"} <= set(exposed.split(", "))


def test_a_preflight_echoes_little(keyed: Proxy) -> None:
    answer = preflight(keyed, PAGE, **{"Access-Control-Request-Headers": "x" * 60_000})
    assert answer.headers["access-control-allow-headers"] == "*, Authorization"


def test_a_star_lists_every_page(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a")}, cors_origins=["*"])
    for origin in ("https://any.example", "null"):
        answer = proxy.get("/v1/models", headers={"Origin": origin})
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)


# --- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LocalHost:{port}", "localhost.", "127.0.0.1", "127.0.0.1:{port}", "127.1.2.3:9", "[::1]",
        "[::1]:{port}", "my-box.lan", "MY-BOX.LAN:{port}", "my-box.lan.:80", "[fd00::5]:{port}", "[FD00::6]", None,
    ],
)  # fmt: skip
def test_its_own_names_are_answered_to(keyless: Proxy, host: str | None) -> None:
    """Whatever port is named, since that may be forwarded; and HTTP/1.0 may leave the name out, a browser never."""
    assert raw(keyless, host and host.format(port=keyless.port)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:{port}", "localhost.evil.example", "my-box.lan.evil.example", "xmy-box.lan",
        "127.0.0.1.evil.example", "0.0.0.0:{port}", "192.168.1.5", "[fd00::7]", "[::]", "::", "", ":{port}", "[", "[]",
        "localhost@evil.example", "evil.example:80:{port}",
    ],
)  # fmt: skip
def test_a_strangers_name_is_not_answered_to(keyless: Proxy, host: str) -> None:
    """DNS rebinding: a page's own name that points to loopback all at once."""
    name = host.format(port=keyless.port)
    for path in ("/v1/models", "/health"):
        assert_forbidden(raw(keyless, name, path))
    assert_forbidden(raw(keyless, name, Origin=f"http://{name}"))


def test_a_name_is_refused_with_a_key_too(keyed: Proxy) -> None:
    assert_forbidden(raw(keyed, "evil.example", **bearer(KEY)))


@pytest.fixture(scope="module")
def opened(bed: Stack, keyed: Proxy) -> Proxy:
    """A proxy without keys that listens on every address."""
    config = bed.folder / "open.yaml"
    server = {"host": "0.0.0.0", "allow_unauthenticated": True, "allowed_hosts": ["my-box.lan"]}
    config.write_text(json.dumps({"server": server, "models": {"a": "a.service"}}))
    return bed.start_proxy("--config", str(config))


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1:{port}", "192.168.1.5:3002", "[fd00::7]:1", "my-box.lan", socket.gethostname(),
     f"{socket.gethostname().partition('.')[0].upper()}.local:{{port}}", "host.docker.internal", None],
)  # fmt: skip
def test_an_open_proxy_is_known_by_address_and_by_the_machines_names(opened: Proxy, host: str | None) -> None:
    assert raw(opened, host and host.format(port=opened.port)).status == 200


@pytest.mark.parametrize("host", ["evil.example", "192.168.1.5.evil.example", "my-box.lan.evil.example", "", "[", "1"])
def test_an_open_proxy_is_not_driven_under_a_strangers_name(opened: Proxy, host: str) -> None:
    """Else any page could chat and hold: its own name may point to the proxy."""
    for path in ("/v1/models", "/health"):
        assert_forbidden(raw(opened, host, path))
    assert_forbidden(raw(opened, host, Origin=f"http://{host}"))


def test_a_proxy_answers_to_the_name_that_it_listens_on() -> None:
    """Nobody but the owner chose it, and the watchdog asks by it."""
    config = parse({"server": {"host": "box.lan", "allow_unauthenticated": True}, "models": {"a": "a.service"}})
    access = Access(config.server, "box.lan")
    assert access.check("/health", {"HTTP_HOST": "Box.lan:3002"}) is False
    with pytest.raises(ForbiddenOrigin):
        access.check("/health", {"HTTP_HOST": "lan:3002"})


def test_with_keys_an_open_proxy_answers_to_any_name(stack: Stack) -> None:
    """As behind a front server; a stranger's page has no key."""
    stack.write_config({"a": "a.service"}, host="0.0.0.0", api_keys=[KEY])
    proxy = stack.start_proxy()
    assert raw(proxy, "chat.example.org", **bearer(KEY)).status == 200
    assert raw(proxy, "chat.example.org").status == 401


def test_an_added_name_counts_at_the_next_request(stack: Stack) -> None:
    unit = stack.standin("a")
    proxy = stack.run({"a": unit})
    refused = raw(proxy, "My-Box.lan")
    assert_forbidden(refused)
    assert "'my-box.lan'" in refused.error["message"]
    assert "server.allowed_hosts" in refused.error["message"]
    stack.write_config({"a": unit}, allowed_hosts=["my-box.lan"])
    assert raw(proxy, "My-Box.lan").status == 200


def test_names_are_compared_without_what_does_not_matter() -> None:
    for host, name in (
        ("A.b:80", "a.b"), ("a.b.", "a.b"), ("[FD00::1]:80", "fd00::1"), ("fd00::1", "fd00::1"), ("", ""), (":80", ""),
    ):  # fmt: skip
        assert host_name(host) == name


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("cors_origins", ["chat.example.org"], "must look like https://chat.example.org"),
        ("cors_origins", ["https://chat.example.org/path"], "must look like"),
        ("cors_origins", ["https://*.example.org"], "must look like"),
        ("cors_origins", ["https://"], "must look like"),
        ("allowed_hosts", ["http://my-box.lan"], "must be a name like my-box.lan"),
        ("allowed_hosts", ["*"], "must be a name like my-box.lan"),
    ],
)
def test_a_value_that_would_never_match_is_reported(key: str, values: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"server\.{key}\.0: {words}"):
        parse({"server": {key: values}, "models": {"a": "a.service"}})


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ("HTTPS://Chat.Example.org/", "https://chat.example.org"), ("https://a.b:443", "https://a.b"),
        ("http://a.b:80", "http://a.b"), ("http://a.b:8080", "http://a.b:8080"), ("http://[::1]:80", "http://[::1]"),
        ("https://a.b:80", "https://a.b:80"), ("null", "null"), ("*", "*"), ("app://obsidian.md", "app://obsidian.md"),
    ],
)  # fmt: skip
def test_an_origin_is_read_in_the_form_that_browsers_send(told: str, meant: str) -> None:
    parsed = parse({"server": {"cors_origins": [told]}, "models": {"a": "a.service"}})
    assert parsed.server.cors_origins == (meant,)


# --- slow senders and idle connections --------------------------------------------------------------

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
SLOW = {
    "nothing": b"",
    "a request line": b"POST /v1/chat/comp",
    "headers": HEAD + b"X-A: ",
    "a body": HEAD + b"Content-Length: 5000000\r\n\r\n{",
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
}


SENDER_TIMEOUT_S = 10  # for so long the proxy waits for the rest of a request


def assert_quick(proxy: Proxy, **headers: str) -> None:
    """Neither the proxy's health nor an answer of the loaded model has to wait for slow senders."""
    began = time.monotonic()
    assert proxy.get("/health").status == 200
    assert proxy.post(CHAT, chat("a"), headers=headers).status == 200
    assert time.monotonic() - began < 0.8 * SENDER_TIMEOUT_S


@pytest.fixture
def small(stack: Stack) -> Proxy:
    """A proxy with few threads: hardly any request may wait."""
    proxy = stack.run({"a": stack.standin("a")}, queue_limit=1)
    proxy.chat("a")
    return proxy


@pytest.mark.parametrize("kind", SLOW)
def test_slow_senders_cannot_hold_all_threads(small: Proxy, kind: str) -> None:
    """Four hundred that begin and go no further; more than there are threads."""
    with contextlib.ExitStack() as held:
        socks = [held.enter_context(connection(small, SLOW[kind])) for _ in range(400)]
        for _ in range(3):
            assert_quick(small)
        if kind != "nothing":  # those that cannot be waited for are told so, and their connections end
            wait_for(lambda: sum(map(_has_answer, socks)) > 300)
            answer = read_all(next(filter(_has_answer, socks)))
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
    assert "Traceback" not in small.log


def test_without_a_key_nobody_can_make_the_proxy_wait_for_a_body(keyed: Proxy) -> None:
    """Refused before the body has come, so that it cannot keep out those who have one."""
    for kind in ("a body", "chunks"):
        with connection(keyed, SLOW[kind]) as sock:
            began = time.monotonic()
            answer = read_all(sock)
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_api_key"
            assert time.monotonic() - began < 0.8 * SENDER_TIMEOUT_S
    large = {"model": "a", "messages": [], "x": "x" * 3_000_000}
    assert_no_key(keyed.post(CHAT, large))  # one that has come for the most part
    assert keyed.post(CHAT, large, headers=bearer(KEY)).status == 200


def test_idle_connections_keep_nobody_out(small: Proxy) -> None:
    """For one more than there may be, the one that has been idle longest is closed."""
    with contextlib.ExitStack() as held:
        socks = [held.enter_context(connection(small)) for _ in range(700)]
        assert_quick(small)
        wait_for(lambda: sum(map(_has_answer, socks)) > 150)
        assert all(map(_has_answer, socks[:100]))
        last = socks[-1]
        last.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert last.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert "Traceback" not in small.log


def test_a_kept_connection_counts_as_idle_between_its_requests(small: Proxy) -> None:
    with contextlib.ExitStack() as held:
        kept = held.enter_context(connection(small))
        for _ in range(2):
            kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert read_health(kept).startswith(b"HTTP/1.1 200 ")
            for _ in range(300):
                held.enter_context(connection(small))
        assert_quick(small)


def test_running_out_of_open_files_is_survived(small: Proxy) -> None:
    """Told in a line, not in a traceback a thousand times a second; the next client is served."""
    pid = small.process.pid
    limit = len(os.listdir(f"/proc/{pid}/fd")) + 60  # noqa: PTH208
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
    with contextlib.ExitStack() as held:
        for _ in range(200):
            held.enter_context(connection(small))
        wait_for(lambda: "no_room_for_a_connection" in small.log)
        assert_quick(small)
    assert "Traceback" not in small.log
    assert small.log.count("no_room_for_a_connection") < 400


def test_there_are_open_files_for_all_connections_that_there_may_be(stack: Stack) -> None:
    """systemd's usual limit is 1024; the proxy raises its own as far as it may."""
    stack.write_config({"a": stack.standin("a")}, queue_limit=500)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        proxy = stack.start_proxy()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE)[0] > 2000


def test_who_drips_ends(dripping: Future[tuple[float, int, int]]) -> None:
    """A byte now and then keeps no connection: headers have 10 s, however they come, and of bodies only some are
    waited for."""
    after_s, heads, bodies = dripping.result(30)
    assert heads == 0
    assert 9 < after_s < 14
    assert 0 < bodies < 50


def read_all(sock: socket.socket) -> bytes:
    """Up to the end of the connection."""
    return b"".join(iter(lambda: sock.recv(4096), b""))


def read_health(sock: socket.socket) -> bytes:
    """One answer of /health on a connection that is kept; head and body may come apart."""
    answer = b""
    while not answer.endswith(b"}") and (piece := sock.recv(4096)):
        answer += piece
    return answer


def _has_answer(sock: socket.socket) -> bool:
    """Whether something came, the end of the connection included."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _drip(sock: socket.socket) -> bool:
    """Sends a byte; False once the connection is over."""
    if _has_answer(sock):
        return False
    with contextlib.suppress(OSError):
        sock.sendall(b"x")
        return True
    return False
