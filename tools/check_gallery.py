"""Open a gallery in headless Chromium from its file, use it, and fail where it does not work.

    python tools/check_gallery.py GALLERY [--screenshot FOLDER] [--chromium PROGRAM]

Checked: no request leaves the folder, nothing is reported on the console, every picture loads, every video and sound
can be played, the filter and the sort order work, the full view opens by keyboard and copies the command, and no text
of an item has become markup. Needs the package playwright and a Chromium (Debian: chromium-headless-shell).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from diffpipe.results import gallery_page

PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")
LOADED = """async () => {
  const pictures = [...document.querySelectorAll("#grid img")];
  for (const picture of pictures) {
    picture.loading = "eager";
    await picture.decode().catch(() => {});
  }
  return pictures.filter((picture) => !picture.naturalWidth).map((picture) => picture.src);
}"""
PLAYABLE = """() => new Promise((done) => {
  const media = document.querySelector("#media video, #media audio");
  const ended = (how) => done([media.tagName, media.duration > 0 ? "" : how]);
  if (media.readyState > 0) return ended("no length");
  media.addEventListener("loadedmetadata", () => ended("no length"));
  media.addEventListener("error", () => ended(media.error.message || "error"));
})"""

BOXES = """all => all.map((one) => {
  const { width, height, left, top, right, bottom } = one.getBoundingClientRect();
  return { width, height, inside: left >= 0 && top >= 0 && right <= innerWidth && bottom <= innerHeight };
})"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gallery", type=Path)
    parser.add_argument("--screenshot", type=Path)
    parser.add_argument("--chromium", default=next(filter(None, map(shutil.which, PROGRAMS)), None))
    options = parser.parse_args()
    found = checked(options.gallery.resolve(), options.chromium, options.screenshot)
    print(json.dumps(found, indent=1, ensure_ascii=False))
    return 1 if found["wrong"] else 0


def checked(folder: Path, program: str | None, screenshots: Path | None) -> dict[str, Any]:
    """What was counted, and under "wrong" what failed."""
    from playwright.sync_api import sync_playwright

    requests: list[str] = []
    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme, viewport={"width": 1200, "height": 800})
            page.on("request", lambda request: requests.append(request.url))
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto((folder / gallery_page.INDEX).as_uri())
            page.locator("#count:not(:empty)").wait_for()
            if screenshots:
                screenshots.mkdir(parents=True, exist_ok=True)
                page.evaluate(LOADED)
                page.screenshot(path=screenshots / f"grid-{scheme}.png")
            found = used(page, folder)
            if screenshots:
                page.locator("#media img").evaluate_all("all => Promise.all(all.map((one) => one.decode()))")
                page.wait_for_timeout(300)
                page.screenshot(path=screenshots / f"view-{scheme}.png")
        browser.close()
    outside = [url for url in requests if not url.startswith(folder.as_uri() + "/")]
    found["wrong"] += [f"requested {url}" for url in outside] + [f"console: {text}" for text in said]
    return {"requests": len(requests), **found}


def used(page: Any, folder: Path) -> dict[str, Any]:
    """Filter, sort and look at everything; the full view is open at the end."""
    items, wrong = gallery_page.read(folder), []

    def expect(what: str, good: object) -> None:
        if not good:
            wrong.append(what)

    def cards() -> int:
        return int(page.locator("#grid > li").count())

    expect("title is Gallery", page.title() == "Gallery")
    expect("every item has a card", cards() == min(len(items), 120))
    missing = page.evaluate(LOADED)
    expect(f"pictures load: {missing}", not missing)
    expect("no markup from texts", page.locator("#grid :is(script, b, iframe, [onerror])").count() == 0)
    alts = page.locator("#grid img:not([alt]), #grid img[alt='']").count()
    expect("every picture has an alternative text", alts == 0)

    seeds = sorted({item.settings.seed for item in items})
    page.get_by_label("Filter").fill(f"seed={seeds[0]}")
    alike = [item for item in items if f"seed={seeds[0]}" in f"seed={item.settings.seed}"]
    expect("the filter leaves what has the words", cards() >= 1 and (cards() == len(alike) or len(alike) > 120))
    page.get_by_label("Filter").fill("no such words anywhere")
    expect("the filter leaves nothing", cards() == 0)
    expect("the count says so", page.locator("#count").text_content() == f"0 of {len(items)} items")
    page.get_by_label("Filter").fill("")

    sortable = page.locator("#sort option").evaluate_all("options => options.map((option) => option.value)")
    for key in sortable:
        page.get_by_label("Sort by").select_option(key)
        expect(f"sorting by {key} keeps all", cards() == min(len(items), 120))
    page.get_by_label("Sort by").select_option("seed")
    order = page.evaluate("chosen.map((item) => item.seed)")
    expect("sorted by seed", order == sorted(order))
    page.get_by_role("button", name="Reversed").click()
    expect("reversed", page.evaluate("chosen.map((item) => item.seed)") == order[::-1])

    page.locator("#grid button").first.focus()
    page.keyboard.press("Enter")
    played = []
    for place in range(len(items)):
        title = page.locator("#title").text_content() or ""
        expect(f"the full view shows item {place + 1}", title.startswith(f"{place + 1} of "))
        command = page.locator("#command").text_content()
        expect(f"the command of item {place + 1}", command == page.evaluate("chosen[current].command"))
        if page.locator("#media video, #media audio").count():
            played.append(page.evaluate(PLAYABLE))
        else:
            width = page.evaluate("document.querySelector('#media img').decode().then(() => true, () => false)")
            expect(f"the full picture of item {place + 1} loads", width)
        for box in page.locator("#media > *").evaluate_all(BOXES):
            expect(f"item {place + 1} is seen: {box}", min(box["width"], box["height"]) > 30 and box["inside"])
        if place < len(items) - 1:
            page.keyboard.press("ArrowRight")
    expect(f"videos and sounds play: {played}", all(not error for _, error in played))
    page.get_by_role("button", name="Copy the command").click()
    page.locator("#copied:not(:empty)").wait_for()
    copied = page.locator("#copied").text_content()
    expect(f"the command is copied: {copied}", copied == "Copied.")
    page.keyboard.press("Escape")
    expect("Escape closes the full view", page.locator("dialog[open]").count() == 0)
    expect("focus returns to the grid", page.evaluate("document.activeElement.closest('#grid') !== null"))
    page.keyboard.press("Enter")
    page.wait_for_timeout(100)
    expect("the full view opens again", page.locator("#media > *").count() > 0)
    return {"items": len(items), "sorts": sortable, "played": [kind for kind, _ in played], "wrong": wrong}


if __name__ == "__main__":
    sys.exit(main())
