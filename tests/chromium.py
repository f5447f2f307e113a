"""A headless Chromium that tests drive, and what they do in it; no tests here."""

import contextlib
import importlib.util
import shutil
import tempfile
import time

FLAGS = (
    "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-unsafe-swiftshader", "--hide-scrollbars",
)  # fmt: skip
FLAT = "--disable-3d-apis"  # the page says that the surface cannot be drawn; a processor takes a second for it
PATIENCE = 30  # seconds until something must have happened


def missing_chromium():
    """Say what is missing to drive one; return "" if nothing is."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    missing += ["selenium"] if importlib.util.find_spec("selenium") is None else []
    return missing and f"{', '.join(missing)} not installed; Debian has chromium-driver, the extra `browser` Selenium"


@contextlib.contextmanager
def started(*flags):
    """A browser."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, *flags, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        with webdriver.Chrome(options=options, service=service) as browser:
            yield browser


def resize(browser, width, height):
    """Give the inside of the window this size, if it has another one."""
    if browser.execute_script("return [innerWidth, innerHeight]") == [width, height]:
        return
    browser.set_window_size(width, height)
    outside = height - browser.execute_script("return innerHeight")
    browser.set_window_size(width, height + outside)


def wait(browser, condition, *arguments):
    """Wait until an expression of JavaScript is true; return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := browser.execute_script(f"return {condition}", *arguments)):
        assert time.monotonic() < deadline, f"{condition}: {browser.execute_script('return document.body.innerText')}"
        time.sleep(0.02)
    return value


def settle(browser):
    """Wait until the page has been answered, and shows it."""
    wait(browser, "typeof asking !== 'undefined' && !asking && state.marbles.length > 0")


def visit(browser, url):
    """Load a page, and wait until it shows marbles."""
    browser.get("about:blank")  # an address that differs in its end alone would not be loaded anew
    browser.get(url)
    settle(browser)


def errors(browser):
    """What the browser's console says is wrong."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
