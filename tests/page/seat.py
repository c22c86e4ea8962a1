"""The page in a browser, as a person handles it."""

from __future__ import annotations

from playwright.sync_api import ConsoleMessage, Locator, Page, expect

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    # No renderers for what a window may need later; each took as much CPU time as the page.
    "--disable-features=PreloadTopChromeWebUI,SpareRendererForSitePerProcess",
]  # fmt: skip


class Seat:
    """One tab. `complaints` is what the browser's console said, `asked` each URL that the page asked for."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open(self) -> None:
        """Opens the page and waits until it is filled."""
        self.page.goto(f"{self.url}/")
        self.page.wait_for_selector("[data-model]")

    def model(self, name: str) -> Locator:
        return self.page.locator(f'[data-model="{name}"]')

    def press(self, action: str, model: str | None = None) -> None:
        place = self.page if model is None else self.model(model)
        place.locator(f'[data-action="{action}"]').click()

    def role(self, name: str) -> Locator:
        return self.page.locator(f'[data-role="{name}"]')

    def expect_state(self, model: str, state: str) -> None:
        """The page must not be loaded again for it."""
        expect(self.model(model)).to_have_attribute("data-state", state, timeout=60_000)

    def say(self, text: str, model: str) -> None:
        """Sends a message in the chat."""
        self.page.locator('select[name="model"]').select_option(model)
        self.page.locator('textarea[name="prompt"]').fill(text)
        self.press("send")
