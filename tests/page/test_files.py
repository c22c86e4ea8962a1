"""What the page is made of and how it is sent; what a program gets at `/`."""

from __future__ import annotations

import re

import pytest

from support.stack import Proxy, Stack
from systemd_llm_switch.page import files

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def proxy(stack: Stack) -> Proxy:
    return stack.run({"a": stack.standin("a")})


def test_a_browser_gets_the_page_and_a_program_gets_json(proxy: Proxy) -> None:
    page = proxy.get("/", headers=HTML)
    assert page.headers["content-type"].startswith("text/html")
    assert re.search(rb"<title>[^<]*llm-switch[^<]*</title>", page.body)
    said = proxy.get("/", headers={"Accept": "*/*"})
    assert set(said.json) == {"name", "version", "links"}
    assert said.headers["content-type"].startswith("application/json")
    assert {said.headers["vary"], page.headers["vary"]} == {"Accept"}


def test_every_link_of_the_json_leads_somewhere(proxy: Proxy) -> None:
    links = proxy.get("/").json["links"]
    paths = set(links.values()) - {"/v1", "/api/events"}  # a base of routes, and one without an end
    assert {path: proxy.get(path).status for path in paths} == dict.fromkeys(paths, 200)


def test_the_pages_policy_allows_nothing_but_its_own_files(proxy: Proxy) -> None:
    policy = proxy.get("/", headers=HTML).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    assert {value for name, value in rules.items() if name != "require-trusted-types-for"} <= {"'self'", "'none'"}
    assert "unsafe" not in policy


def test_each_file_that_the_page_names_is_sent_with_its_type(proxy: Proxy) -> None:
    page = proxy.get("/", headers=HTML).body.decode()
    names = set(re.findall(r'(?:src|href)="static/([^"]+)"', page))
    assert {"app.js", "style.css", "icon.svg"} <= names
    types = {name: proxy.get(f"/static/{name}").headers["content-type"].partition(";")[0] for name in names}
    known = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    assert types == {name: known[name[name.rindex(".") :]] for name in names}


def test_nothing_in_the_page_names_another_host(proxy: Proxy) -> None:
    for name in sorted(files._names()):
        text = proxy.get(f"/static/{name}").body.decode()
        found = re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", text)
        assert set(found) <= {"http://www.w3.org"}, name  # SVG's namespace


def test_the_icon_is_where_browsers_look_for_it(proxy: Proxy) -> None:
    answer = proxy.get("/favicon.ico")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/svg+xml")


def test_a_file_that_the_browser_has_is_not_sent_again(proxy: Proxy) -> None:
    etag = proxy.get("/static/app.js").headers["etag"]
    again = proxy.get("/static/app.js", headers={"If-None-Match": f'"x", W/{etag}'})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
    assert proxy.get("/static/app.js", headers={"If-None-Match": '"x"'}).status == 200


@pytest.mark.parametrize("name", ["nope.js", "../files.py", "..%2ffiles.py", "%00", "static/app.js", "."])
def test_no_other_file_can_be_had(proxy: Proxy, name: str) -> None:
    answer = proxy.get(f"/static/{name}")
    assert (answer.status, answer.error["code"]) == (404, "unknown_url")


def test_with_keys_the_page_is_open_and_what_it_shows_is_not(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a")}, api_keys=["sk-mine"])
    assert [proxy.get(path, headers=HTML).status for path in ("/", "/static/app.js")] == [200, 200]
    paths = ("/api/status", "/api/events", "/api/requests", "/api/logs", "/static", "/staticx")
    assert {proxy.get(path).status for path in paths} == {401}


@pytest.mark.parametrize("path", ["/", "/static/app.js"])
def test_a_page_of_another_site_gets_nothing(proxy: Proxy, path: str) -> None:
    answer = proxy.get(path, headers={**HTML, "Origin": "https://evil.example"})
    assert (answer.status, answer.error["code"]) == (403, "forbidden_origin")


def test_a_check_whether_the_proxy_answers_logs_no_warning(proxy: Proxy) -> None:
    assert proxy.request("HEAD", "/").status == 200
    assert "refused" not in proxy.log
