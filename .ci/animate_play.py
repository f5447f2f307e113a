"""Make docs/play.gif: the lesson "carried through" of ``fastopt lab play``, as Chromium shows it."""

import io
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import chromium  # noqa: E402 (it is in the folder above)

from fastopt.lab.animation import palette_of, reduced  # noqa: E402
from fastopt.lab.play import Play, server  # noqa: E402

STEPS = [*range(40), *range(40, 80, 2)]  # of the marbles, a frame each
STOPS = (8, 11, 14)  # steps at which the arrows are shown for a while
MILLISECONDS, STOP, HOLD = 70, 1200, 2500
WIDTH = 900


def frames(browser) -> list[tuple[Image.Image, int]]:
    """Return pictures of map and surface, and how long each is shown, in milliseconds."""
    browser.execute_script("startLesson('carried')")
    chromium.settle(browser)
    found = []
    for step in STEPS:
        browser.execute_script("clock.go(arguments[0], false); show(arguments[0], arguments[1])", step, step in STOPS)
        chromium.wait(browser, "spaceDue === null")
        png = browser.find_element("css selector", "#plots").screenshot_as_png
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        height = round(picture.height * WIDTH / picture.width)
        found.append(
            (picture.resize((WIDTH, height), Image.Resampling.LANCZOS), STOP if step in STOPS else MILLISECONDS)
        )
    return [*found[:-1], (found[-1][0], HOLD)]


def main() -> None:
    """Serve the page, photograph it, and write the file."""
    with Play(server.listen("127.0.0.1", 0)) as page, chromium.started() as browser:
        chromium.resize(browser, 1280, 800)
        chromium.visit(browser, page.url)
        pictures, durations = zip(*frames(browser), strict=True)
    palette = palette_of(pictures[STEPS.index(STOPS[-1])])  # where all colours are, those of the arrows too
    first, *rest = (reduced(picture, palette) for picture in pictures)
    first.save(ROOT / "docs/play.gif", save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)


if __name__ == "__main__":
    main()
