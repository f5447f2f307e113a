"""The page in which marbles roll, in a real browser."""

import json

import numpy as np
import pytest
from chromium import FLAT, errors, resize, settle, started, visit, wait

from fastopt.lab import play
from fastopt.lab.play import Play, export, marbles, server, settings
from fastopt.lab.play.lessons import LESSONS
from fastopt.lab.play.shapes import SHAPES

pytestmark = pytest.mark.browser

FIRST = next(iter(LESSONS))
SIZES = {"laptop": (1280, 800), "tablet": (1024, 768), "upright": (768, 1024)}

EXPLODING = "?landscape=cliff&x=5.6&y=-2.5&steps=200&marble=lr:0.2&marble=lr:0.2,max_grad_norm:0.3"  # the lesson

# Whether the map is as high as its frame, also while a message takes some of the page.
FITS = "Math.abs(map.plot.querySelector('svg').clientHeight - get('map').clientHeight) <= 1"

# Texts that lie over each other, or are cut off: pairs of what they say. Options of a closed select are no text.
CLASHES = """
const boxes = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const holder = node.parentElement;
  if (!node.textContent.trim() || holder.closest("script, style, option, dialog:not([open])")) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const box of range.getClientRects()) {
    if (box.width > 1 && box.height > 1) boxes.push({ text: node.textContent, node, box, holder });
  }
}
const clashes = [];
for (let i = 0; i < boxes.length; i += 1) {
  for (let j = 0; j < i; j += 1) {
    const [a, b] = [boxes[i].box, boxes[j].box];
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (boxes[i].node !== boxes[j].node && wide > 2 && high > 4) clashes.push(`${boxes[i].text} | ${boxes[j].text}`);
  }
  if (boxes[i].box.right > innerWidth + 1) clashes.push(`cut off: ${boxes[i].text}`);
}
return clashes;
"""


@pytest.fixture(scope="module")
def served():
    """A page that is being served; a kernel is compiled when the page first asks for it, beside the other process."""
    with Play(server.listen("127.0.0.1", 0)) as page:
        yield page


@pytest.fixture(scope="module")
def chromium():
    with started(FLAT) as browser:
        yield browser


@pytest.fixture
def window(request, chromium):
    """A window, and no error in its console at the end; after a failure the next test loads the page anew."""
    failed = request.session.testsfailed
    resize(chromium, *SIZES["laptop"])
    errors(chromium)
    yield chromium
    found = errors(chromium)
    if found or request.session.testsfailed > failed:
        chromium.get("about:blank")
    assert found == []


@pytest.fixture
def page(window, served):
    """The page with its first lesson, as it begins; loaded once for many tests: a lesson sets all of it anew."""
    if of(window, "location.origin") + "/" == served.url:
        press(window, f'[data-lesson="{FIRST}"]')
    else:
        visit(window, served.url)
    return window


def of(page, expression):
    """The value of an expression of JavaScript in the page."""
    return page.execute_script(f"return {expression}")


def find(page, selector):
    return page.find_element("css selector", selector)


def press(page, selector):
    find(page, selector).click()
    settle(page)


def message(page):
    """What the page complains about."""
    return of(page, 'get("message").hidden ? "" : get("message").textContent')


def type_into(page, name, text):
    """Type a value into a field, as somebody does: replace what stands there, and leave it."""
    field = find(page, f"#{name}")
    field.clear()
    field.send_keys(text, "\t")
    settle(page)


def slide(page, name, place):
    """Move a slider to a place."""
    page.execute_script(
        "const slider = get(arguments[0]); slider.value = arguments[1]; slider.dispatchEvent(new Event('input'))",
        name, place,
    )  # fmt: skip
    settle(page)


def choose(page, name, word):
    """Choose a word."""
    page.execute_script(
        "const select = get(arguments[0]); select.value = arguments[1]; select.dispatchEvent(new Event('change'))",
        name, word,
    )  # fmt: skip
    settle(page)
    wait(page, "document.getElementById(arguments[0])?.value === arguments[1]", name, word)


def pointer(page, *places):
    """Press at a place of the map, drag through the others, and release; places are shares of width and height."""
    from selenium.webdriver import ActionChains

    canvas = find(page, "#map canvas")
    width, height = canvas.size["width"], canvas.size["height"]
    chain = ActionChains(page, duration=20)
    for i, (x, y) in enumerate(places):
        chain.move_to_element_with_offset(canvas, round((x - 0.5) * width), round((y - 0.5) * height))
        if i == 0:
            chain.click_and_hold()
    chain.release().perform()
    settle(page)


def shown(page):
    """The settings that the page shows, checked."""
    return settings.checked(of(page, "state.settings"))


def assert_paths_are_fastopts(page):
    """What the page has of each marble is what fastopt computes for the settings that it shows."""
    given = shown(page)
    for i, marble in enumerate(given.marbles):
        walked = marbles.roll_from(marble, given.landscape, given.start, given.noises())
        points = np.array(of(page, f"Array.from(state.marbles[{i}].points)"), np.float32)
        np.testing.assert_array_equal(points, walked.points.astype(np.float32).ravel())


def assert_space_has_the_same_paths(page):
    """What is drawn in space, where anything is, are the marbles' paths and where they end; nothing is off the map."""
    drawn = of(page, "state.marbles.map((each) => inSpace(state.land, each, each.steps))")
    for i, (line, ball) in enumerate(drawn):
        points = np.array(of(page, f"Array.from(state.marbles[{i}].points)")).reshape(-1, 2)
        low, high = np.array(shown(page).landscape.extent).T
        inside = ((low <= points) & (points <= high)).all(axis=1)
        found = np.array([line["x"], line["y"]], np.float64).T  # None is NaN
        np.testing.assert_array_equal(found, np.where(inside[:, np.newaxis], points, np.nan))
        np.testing.assert_array_equal([line["z"][-1]], ball["z"])


def test_the_page_begins_with_the_first_lesson(window):
    """As people start it, with all kernels compiled; without WebGL it says so where the surface would be."""
    with play() as served:
        visit(window, served.url)
        assert shown(window) == settings.checked(LESSONS[FIRST].settings)
        assert message(window) == ""
        assert not of(window, "get('log').checked === false || get('program').open")
        assert "no WebGL" in find(window, "#space").text
        assert of(window, "space.data === undefined && spaceDue === null")
        window.get("about:blank")


def test_a_click_sets_the_start_and_the_marble_rolls(page):
    """And a drag moves it, with the path at once."""
    press(page, '[data-lesson="carried"]')
    pointer(page, (0.25, 0.2))
    assert of(page, "clock.playing || clock.step > 0")
    x, y = shown(page).start
    low, high = np.array(shown(page).landscape.extent).T
    np.testing.assert_allclose([x, y], low + np.array([0.25, 0.8]) * (high - low), atol=0.05)
    assert_paths_are_fastopts(page)
    pointer(page, (0.25, 0.2), (0.5, 0.4), (0.75, 0.25))
    x, y = shown(page).start
    np.testing.assert_allclose([x, y], low + np.array([0.75, 0.75]) * (high - low), atol=0.05)
    assert not of(page, "clock.playing")
    assert of(page, "clock.step === clock.steps")
    assert float(find(page, "#x").get_attribute("value")) == x
    assert_paths_are_fastopts(page)


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_is_one_click(page, name):
    """Its text, its marbles, and they roll to the end."""
    press(page, f'[data-lesson="{name}"]')
    assert find(page, "#text").text == LESSONS[name].text
    assert shown(page) == settings.checked(LESSONS[name].settings)
    assert find(page, f'[data-lesson="{name}"]').get_attribute("aria-pressed") == "true"
    slide(page, "speed", 3)
    wait(page, "!clock.playing && clock.step === clock.steps")
    assert_paths_are_fastopts(page)
    assert_space_has_the_same_paths(page)


def test_every_rule_has_its_fields(page):
    """Each field can be moved and typed, and changes what is asked for; and every rule's path is fastopt's."""
    tried = set()
    for rule, kind in marbles.KINDS.items():
        choose(page, "rule", rule)
        names = of(page, "[...document.querySelectorAll('#of-marble .field')].map((field) => field.dataset.name)")
        assert {"rule", "lr", "lr_shape", "weight_decay", "max_grad_norm", *kind.fields} <= {*names}
        assert ("momentum_shape" in names) == (kind.momentum is not None)
        for name in (name for name in names if isinstance(marbles.MARBLE[name], settings.Field) and name not in tried):
            slide(page, f"{name}-slider", 400)
            moved = shown(page).marbles[0][name]
            assert float(find(page, f"#{name}").get_attribute("value")) == pytest.approx(moved)
            type_into(page, name, "0.25")
            assert shown(page).marbles[0][name] == 0.25
            tried.add(name)
        assert message(page) == ""
        assert_paths_are_fastopts(page)


def test_every_schedule_has_its_fields(page):
    """For the rate and the momentum, with a curve of each."""
    choose(page, "rule", "momentum")
    for shape, each in SHAPES.items():
        for of_what in ("lr", "momentum"):
            choose(page, f"{of_what}_shape", shape)
            names = of(page, "[...document.querySelectorAll('#of-marble .field')].map((field) => field.dataset.name)")
            assert {f"{of_what}_{number}" for number in each.numbers} <= {*names}
        assert message(page) == ""
        given = shown(page)
        drawn = marbles.rows(given.marbles[0], given.steps)[1]
        curves = of(page, "plotOf('schedules').data.map((trace) => Array.from(trace.y))")
        np.testing.assert_allclose(curves, [drawn["lr"], drawn["momentum"]], rtol=1e-6)


def assert_a_click_says_why_the_start_stays(page):
    """In the exported page, also where the page is longer than the window; a drag does so too, a lesson ends it."""
    resize(page, *SIZES["upright"])
    before = shown(page)
    for places in ([(0.5, 0.5)], [(0.25, 0.25), (0.75, 0.75)]):
        page.execute_script("get('map').scrollIntoView({ block: 'end' })")
        pointer(page, *places)
        assert "The start stays" in message(page)
        assert "fastopt lab play" in message(page)
        assert of(page, "get('message').getBoundingClientRect().top") >= 0
        assert of(page, FITS)
        assert shown(page) == before
        press(page, f'[data-lesson="{FIRST}"]')
        assert message(page) == ""
        before = shown(page)


def test_the_exported_page_works_without_a_network(chromium, tmp_path):
    """Every lesson, at each end of every slider; nothing is fetched."""
    file = tmp_path / "lessons.html"
    export.export(file)
    chromium.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    chromium.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    try:
        visit(chromium, file.as_uri())
        errors(chromium)
        for name, lesson in LESSONS.items():
            press(chromium, f'[data-lesson="{name}"]')
            assert find(chromium, "#text").text == lesson.text
            for slider, stops in lesson.grid.items():
                for place in (0, len(stops) - 1):
                    slide(chromium, slider, place)
                    assert of(chromium, f"valueAt(state.settings, {json.dumps(slider)})") == stops[place]
                    assert_paths_are_fastopts(chromium)
        assert_a_click_says_why_the_start_stays(chromium)
        assert of(chromium, "performance.getEntriesByType('resource').length") == 0
        assert errors(chromium) == []
    finally:
        chromium.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})


def test_the_surface_has_the_same_paths(served):
    """Over the ground, with a marble that moves; what is off the map is not drawn."""
    with started() as page:
        resize(page, *SIZES["laptop"])
        visit(page, served.url + EXPLODING)  # at its end: rolling there, a processor would draw it many times
        assert shown(page) == settings.checked(LESSONS["exploding"].settings)
        assert find(page, "#space").text == ""
        press(page, "#restart")
        press(page, "#forward")
        press(page, "#forward")
        wait(page, "spaceDue === null")
        surface, *others = of(page, "space.data.map((trace) => ({ type: trace.type, x: trace.x, z: trace.z }))")
        points = np.array(of(page, "Array.from(state.marbles[1].points)")).reshape(-1, 2)
        assert errors(page) == []
    assert surface["type"] == "surface"
    assert [each["type"] for each in others] == ["scatter3d"] * 4
    np.testing.assert_allclose(others[3]["x"][0], points[2, 0], rtol=1e-6)
    assert None in others[0]["x"]


def test_the_settings_of_the_page(page):
    """Every landscape, the start, steps, noise and seed."""
    for name, each in settings.LANDSCAPES.items():
        choose(page, "landscape", name)
        assert shown(page).start == each.start
        assert message(page) == ""
    choose(page, "landscape", "bowl")
    for name, text in {"x": "2,5", "y": "-1", "steps": "77", "noise": "0.5", "seed": "3"}.items():
        type_into(page, name, text)
    given = shown(page)
    assert (given.start, given.steps, given.noise, given.seed) == ((2.5, -1.0), 77, 0.5, 3)
    assert_paths_are_fastopts(page)


def test_stepping_shows_the_arrows(page):
    """By buttons and keys; pull and velocity are together the step."""
    press(page, '[data-lesson="carried"]')
    press(page, "#play")
    press(page, "#restart")
    for _ in range(3):
        press(page, "#forward")
    press(page, "#back")
    assert of(page, "clock.step") == 2
    assert find(page, "#arrows").is_displayed()
    arrows = of(page, "arrowsAt(state.marbles[1], 2)")
    np.testing.assert_allclose(np.add(arrows["pull"], arrows["velocity"]), arrows["step"], atol=1e-6)
    given = shown(page)
    walked = marbles.roll_from(given.marbles[1], given.landscape, given.start, given.noises())
    np.testing.assert_allclose(arrows["pull"], walked.pulls[2], atol=1e-6)
    body = find(page, "body")
    page.execute_script("document.activeElement.blur()")
    body.send_keys("\ue014")  # the right arrow
    assert of(page, "clock.step") == 3
    body.send_keys("\ue012")
    assert of(page, "clock.step") == 2
    body.send_keys("1")
    assert of(page, "state.chosen") == 0
    body.send_keys(" ")
    assert of(page, "clock.playing")
    assert not find(page, "#arrows").is_displayed()
    body.send_keys(" ", "\ue011")  # and Home
    assert of(page, "clock.step") == 0


def test_the_best_point_so_far(page):
    """Of the chosen marble, at every step."""
    press(page, '[data-lesson="carried"]')
    best, above = of(page, "[Array.from(state.marbles[1].best), Array.from(state.marbles[1].above)]")
    assert best == [int(np.argmin(above[: step + 1])) for step in range(len(above))]


def test_up_to_four_marbles_are_compared(page):
    """Each with its settings, from one start."""
    for rule in ("adagrad", "rmsprop", "lion"):
        press(page, "#add")
        wait(page, "document.querySelectorAll('.marble').length === state.settings.marbles.length")
        choose(page, "rule", rule)
    assert [marble["rule"] for marble in shown(page).marbles] == ["sgd", "adagrad", "rmsprop", "lion"]
    assert not find(page, "#add").is_enabled()
    assert_paths_are_fastopts(page)
    assert len(of(page, "plotOf('losses').data")) == 4
    assert len(of(page, "plotOf('rates').data")) == 4  # two coordinates of two adaptive rules
    press(page, ".marble:nth-child(2) .remove")
    assert [marble["rule"] for marble in shown(page).marbles] == ["sgd", "rmsprop", "lion"]
    for logarithmic in (False, True):
        press(page, "#log")
        assert of(page, "plotOf('losses').layout.yaxis.type === 'log'") is logarithmic


def test_random_starts_fill_a_bar(page):
    """All 200 are counted, for each marble."""
    press(page, '[data-lesson="carried"]')
    press(page, "#starts")
    wait(page, "!get('starts').disabled")
    bars = of(
        page,
        "[...document.querySelectorAll('.bar')].map((bar) => Object.fromEntries("
        "[...bar.children].map((part) => [part.dataset.end, Number(part.dataset.count)])))",
    )
    assert [sum(ends.values()) for ends in bars] == [200, 200]
    assert bars[1]["basin"] > bars[0]["basin"] > 0


def test_an_address_brings_everything_back(page):
    """In another window, which is not disturbed by the first one."""
    press(page, '[data-lesson="reheated"]')
    choose(page, "landscape", "ravine")
    type_into(page, "lr", "0.15")
    given, address, first = shown(page), page.current_url, page.current_window_handle
    page.switch_to.new_window("tab")
    visit(page, address)
    assert shown(page) == given
    type_into(page, "lr", "0.01")
    second = shown(page)
    assert second != given
    page.switch_to.window(first)
    pointer(page, (0.3, 0.3))
    moved = shown(page)
    assert moved.marbles == given.marbles
    page.close()
    page.switch_to.window(page.window_handles[0])
    assert shown(page) == second


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("?landscape=moon", "unknown landscape 'moon'"),
        ("?steps=many", "steps must be a number"),
        ("?marble=rule:adem", "unknown rule of marble 1 'adem'"),
        ("?marble=lr:-1", "lr of marble 1 must be"),
        ("?marble=a&marble=b&marble=c&marble=d&marble=e", "there must be 1 to 4 marbles"),
        ("?<script>alert(1)</script>=3", "there is no setting '<script>"),
        ("?%ff%fe", "there is no setting"),
    ],
)
def test_nonsense_in_the_address_gets_a_message(window, served, address, complaint):
    """And the page works."""
    visit(window, served.url + address)
    assert complaint in message(window)
    press(window, '[data-lesson="stuck"]')
    assert message(window) == ""


def test_nonsense_in_a_field_gets_a_message(page):
    """The path stays, until the field makes sense again."""
    before = shown(page)
    for text in ("fast", "-1", "1e99", ""):
        type_into(page, "lr", text)
        assert "lr of marble 1 must be" in message(page)
        assert shown(page) == before
    type_into(page, "lr", "0.3")
    assert message(page) == ""
    assert shown(page).marbles[0]["lr"] == 0.3


def test_the_copied_program_runs(page, capsys):
    """And ends where the marbles do."""
    press(page, '[data-lesson="homing"]')
    press(page, "#code")
    wait(page, "get('program').open")
    code = find(page, "#program pre").text
    press(page, "#program button")
    exec(compile(code, "program", "exec"), {})
    printed = capsys.readouterr().out.replace("[", " ").replace("]", " ").splitlines()
    ends = of(page, "state.marbles.map((marble) => pointAt(marble, marble.steps))")
    np.testing.assert_allclose([[*map(float, line.split()[-2:])] for line in printed], ends, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("size", "lesson"), [("laptop", "carried"), *((size, "dies") for size in SIZES)])
def test_no_text_lies_over_text(page, size, lesson):
    """Nor is any cut off, at the sizes that people have; while stepping, with bars and a message, all is shown."""
    resize(page, *SIZES[size])
    press(page, f'[data-lesson="{lesson}"]')
    press(page, "#starts")
    wait(page, "!get('starts').disabled")
    type_into(page, "lr", "-1")
    assert of(page, FITS)
    press(page, "#restart")
    press(page, "#forward")
    assert page.execute_script(CLASHES) == []
    assert of(page, "document.documentElement.scrollWidth <= innerWidth")


def test_a_clash_is_found(page):
    """By the script above; the page is of no use afterwards."""
    page.execute_script("get('text').style.marginTop = '-40px'; get('lessons').textContent = 'x'.repeat(200)")
    assert page.execute_script(CLASHES) != []
    page.get("about:blank")
