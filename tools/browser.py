"""The host's own frontend in headless Chromium.

Run as a script it draws docs/canvas.jpg, the main workflow after a run, and docs/start.jpg, the way from the templates
to an edited picture. COMFYUI_PATH names the host. On the oldest it draws that way alone, docs/start_oldest.jpg.
Playwright drives the system's Chromium (apt-get install chromium) and downloads none.
"""
import io
import re
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from comfy_server import Server, free_port
from environment import OLDEST_HOST, host_version
from pack import NAME, ROOT, find_host
from workflow import MAIN

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync"]
# Errors of the frontend itself: about a new user's files, a help page's other places, hosts that it may not ask, and on
# ComfyUI 0.3.64 about its icon and a setting that it reads before there is a graph.
HOSTS_OWN = re.compile(r"/user\.css|/api/userdata|/docs/\w+/en\.md|graph accessed before initialization|"
                       r"^(Connecting to '|Fetch API cannot load )https://|/favicon\.ico|\.addSetting ")
WIDE, GAP = 1600, 10
LAPTOP, SMALL = (1440, 900), (520, 325)  # px: a window, and a step before the last of docs/start.jpg
TRY = "Try without a model"
LOAD = """async ([pack, name]) => {
    const answer = await fetch(`/api/workflow_templates/${pack}/${encodeURIComponent(name)}.json`)
    await app.loadGraphData(await answer.json(), true, true, name)
}"""
RUN = """async () => {
    const ends = ['execution_success', 'execution_error', 'execution_interrupted']
    window.ended = null
    for (const kind of ends) {
        app.api.addEventListener(kind, event => { window.ended = {kind, ...event.detail} }, {once: true})
    }
}"""
# Makes a part of the canvas fill the window.
SHOW = """([x, y, width, height]) => {
    const {ds, canvas} = app.canvas, box = canvas.getBoundingClientRect()
    ds.scale = Math.min(box.width / width, box.height / height)
    ds.offset = [(box.width / ds.scale - width) / 2 - x, (box.height / ds.scale - height) / 2 - y]
    app.canvas.setDirty(true, true)
}"""


class Frontend:
    """A page of the frontend, and the errors of its console and its scripts without the host's own."""

    def __init__(self, page, url: str):
        self.page, self.url, self.errors = page, url, []
        page.set_default_timeout(240_000)  # the machine may be busy with other tests
        page.on("pageerror", self._thrown)
        page.on("console", self._heard)
        page.goto(url)
        page.wait_for_function("window.app?.extensionManager && document.querySelector('#graph-canvas')")
        page.get_by_role("dialog").wait_for()  # a new user sees the templates
        page.keyboard.press("Escape")
        page.get_by_role("dialog").wait_for(state="hidden")

    def _thrown(self, error):
        if not HOSTS_OWN.search(error.stack):
            self.errors.append(str(error))

    def _heard(self, message):
        text = f"{message.text} {message.location['url']}"
        if message.type == "error" and message.location["url"].startswith(self.url) and not HOSTS_OWN.search(text):
            self.errors.append(text)

    def set(self, **settings):
        """Settings by name, with __ for the dots."""
        for name, value in settings.items():
            self.page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)",
                               [name.replace("__", "."), value])

    def templates(self, text: str):
        """Opens the template browser at this pack's, with a text in its search. Returns the dialog."""
        dialog = self.page.get_by_role("dialog")
        self.page.get_by_role("button", name="Templates").first.click()
        dialog.get_by_text(NAME, exact=True).first.click()
        dialog.locator("input").first.fill(text)  # a textbox or a searchbox
        return dialog

    def choose(self, name: str):
        """Opens a template as a user does."""
        dialog = self.templates(name)
        dialog.get_by_text(name, exact=True).first.click()
        dialog.wait_for(state="hidden")

    def load(self, name: str):
        self.page.evaluate(LOAD, [NAME, name])

    def run(self, button=None) -> dict:
        """Press the run button, or another that runs. Returns the event that ended the run."""
        self.page.evaluate(RUN)
        (button or self.page.get_by_role("button", name="Run", exact=True).first).click()
        return self.page.wait_for_function("window.ended").json_value()


@contextmanager
def frontend(server: Server, width: int, height: int):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS, timeout=240_000)
        try:
            yield Frontend(browser.new_page(viewport={"width": width, "height": height}), server.url)
        finally:
            browser.close()


def started(view: Frontend, file: Path):
    """Draws the template browser, a template as it opens, and the same after a run, large."""
    from PIL import Image
    page, steps = view.page, []

    def seen():
        page.mouse.move(1000, 850)  # no tooltip
        page.wait_for_timeout(3000)
        steps.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))

    page.set_viewport_size(dict(zip(("width", "height"), LAPTOP)))
    view.templates("start").get_by_text("Start here").first.wait_for()
    seen()
    page.keyboard.press("Escape")
    begun = time.monotonic()
    view.choose(TRY)
    seen()
    assert view.run()["kind"] == "execution_success"
    print(f"from the templates to a picture: {time.monotonic() - begun:.0f} s")
    page.wait_for_timeout(5000)  # the notification goes
    seen()
    left, high = SMALL[0] + GAP, 2 * SMALL[1] + GAP
    page = Image.new("RGB", (left + high * LAPTOP[0] // LAPTOP[1], high), "white")
    for i, step in enumerate(steps[:2]):
        page.paste(step.resize(SMALL, Image.Resampling.LANCZOS), (0, i * (SMALL[1] + GAP)))
    page.paste(steps[2].resize((page.width - left, high), Image.Resampling.LANCZOS), (left, 0))
    page.save(file, quality=80, optimize=True)
    print(file)


def main() -> int:
    from PIL import Image
    oldest = host_version(find_host()) == OLDEST_HOST
    with (tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base,
          Server(find_host(), Path(sys.executable), Path(base), free_port(), log=Path(base) / "log") as server,
          frontend(server, 2 * WIDE, WIDE) as view):
        view.set(Comfy__VueNodes__Enabled=not oldest, Comfy__Minimap__Visible=False, Comfy__Graph__CanvasInfo=False,
                 Comfy__Graph__CanvasMenu=False)
        started(view, ROOT / "docs" / ("start_oldest.jpg" if oldest else "start.jpg"))
        if oldest:
            return 0
        server.post("/free", {"free_memory": True})  # nodes in the host's cache would show no picture
        view.page.set_viewport_size({"width": 2 * WIDE, "height": WIDE})
        view.load(MAIN)
        assert view.run()["kind"] == "execution_success", (Path(base) / "log").read_text()
        view.page.evaluate("app.extensionManager.focusMode = true")  # no bars
        view.page.wait_for_timeout(5000)  # the last pictures load, the notification goes
        frames = view.page.evaluate("app.graph.groups.map(group => [...group._bounding])")
        x, y = (min(corner) - GAP for corner in list(zip(*frames))[:2])
        size = [max(frame[i] + frame[i + 2] for frame in frames) + GAP - start for i, start in enumerate((x, y))]
        view.page.evaluate(SHOW, [x, y, *size])
        view.page.wait_for_timeout(3000)
        shot = Image.open(io.BytesIO(view.page.locator("#graph-canvas-container").screenshot())).convert("RGB")
    scale = min(side / part for side, part in zip(shot.size, size))
    wide, high = (round(scale * part) for part in size)
    left, top = (shot.width - wide) // 2, (shot.height - high) // 2
    page = shot.crop((left, top, left + wide, top + high)).resize((WIDE, round(WIDE * high / wide)),
                                                                  Image.Resampling.LANCZOS)
    page.save(ROOT / "docs" / "canvas.jpg", quality=75, optimize=True)
    print(ROOT / "docs" / "canvas.jpg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
