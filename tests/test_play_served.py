"""The page's server, the exported file and the command, without a browser."""

import http.client
import json
import re
import signal
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest

from fastopt import cli, lab
from fastopt.extras import MissingExtraError
from fastopt.lab.play import Play, command, export, page, server, settings
from fastopt.lab.play.lessons import LESSONS
from fastopt.lab.play.page import asset

BOWL = {"landscape": "bowl", "steps": 10, "marbles": [{"rule": "sgd", "lr": 0.1}]}


@pytest.fixture(scope="module")
def served():
    """A page that is being served, with no more compiled than is asked for."""
    with Play(server.listen("127.0.0.1", 0)) as play:
        yield play


def ask(play, path, body=None, method="POST", **headers):
    """Ask the server: status, content type, text."""
    host, port = re.fullmatch(r"http://(.*):(\d+)/", play.url).groups()
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers["Content-Type"], text


def test_the_page_is_one_file_and_plotly(served):
    """It fetches nothing from elsewhere."""
    status, kind, text = ask(served, "/?landscape=bowl", method="GET")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == ["data:,", "plotly.js"]
    assert not re.search("https?:", text)
    assert "@import" not in text
    status, kind, text = ask(served, "/plotly.js", method="GET")
    assert (status, kind) == (200, "text/javascript; charset=utf-8")
    assert "plotly.js v" in text[:200]


def test_the_page_knows_all_fields():
    """And every script is in it, so that no function is missing."""
    text = page.page(True, server.PLOTLY, [asset("source.js")])
    told = json.loads(re.search(r"^const PAGE = (.*);$", text, re.MULTILINE)[1])
    assert {*told["marble"]} == {*settings.MARBLE}
    assert {*told["page"]} == {*settings.PAGE}
    defined = {*re.findall(r"^(?:async )?function (\w+)", text, re.MULTILINE)}
    scripts = "".join(map(asset, (*page.SCRIPTS, "source.js", "play.js")))
    assert defined == {*re.findall(r"^(?:async )?function (\w+)", scripts, re.MULTILINE)}


def test_no_text_ends_the_script():
    """Whatever a value says."""
    line = page.constant("WORDS", {"a": "</script><script>alert(1)</script>"})
    assert "<" not in line
    assert json.loads(line.removeprefix("const WORDS = ").removesuffix(";")) == {
        "a": "</script><script>alert(1)</script>"
    }


def test_the_server_answers(served):
    """Paths, a landscape, random starts and a program."""
    status, kind, text = ask(served, "/paths", json.dumps(BOWL))
    assert (status, kind) == (200, "application/json; charset=utf-8")
    (marble,) = json.loads(text)["marbles"]
    assert marble["end"] == "moving"
    assert json.loads(ask(served, "/landscape", '"bowl"')[2])["axes"] == ["x", "y"]
    question = json.dumps({"settings": BOWL, "first": 0, "count": 5})
    (ends,) = json.loads(ask(served, "/starts", question)[2])["ends"]
    assert sum(ends.values()) == 5
    assert "SGD(p, lr=0.1)" in json.loads(ask(served, "/snippet", json.dumps(BOWL))[2])["code"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/paths", "{", "Expecting property name"),
        ("/paths", "[" * 50_000, "recursion"),
        ("/paths", "\xff", "utf-8"),
        ("/paths", '{"x": NaN}', "x must be"),
        ("/paths", '{"landscape": "moon"}', "unknown landscape 'moon'"),
        ("/paths", '{"marbles": [{"rule": "nesterov", "momentum": 0}]}', "Nesterov momentum requires a momentum"),
        ("/landscape", '"moon"', "there is no landscape 'moon'"),
        ("/landscape", "{}", "there is no landscape {}"),
        ("/starts", '{"first": 500, "count": 1}', "first must be"),
        ("/starts", '{"first": 0}', "count must be an int, not None"),
        ("/snippet", '{"steps": -1}', "steps must be"),
    ],
)
def test_a_question_without_sense_gets_a_message(path, body, message):
    """And no traceback."""
    assert message in server.answer(path, body.encode("latin-1"))["error"]


def test_other_requests_are_refused(served):
    """What is not there, and what is too large; the server goes on."""
    assert ask(served, "/etc/passwd", method="GET")[0] == 404
    assert ask(served, "/nothing", "{}")[0] == 404
    assert ask(served, "/paths", "x" * (server.LARGEST + 1))[0] == 413
    assert ask(served, "/", method="GET")[0] == 200


def test_pages_do_not_disturb_each_other(served):
    """Each gets its own answer, however many ask at once."""
    questions = [{**BOWL, "x": 0.1 * i, "marbles": [{"lr": 0.1 + 0.01 * i}]} for i in range(12)]
    with ThreadPoolExecutor(6) as pages:
        answers = [*pages.map(lambda question: ask(served, "/paths", json.dumps(question))[2], questions)]
    alone = [json.dumps(server.paths(question)) for question in questions]
    assert answers == alone
    assert len({*answers}) == len(questions)


def test_a_notebook_shows_the_page(served):
    """In a frame."""
    assert f'src="{served.url}"' in served._repr_html_()


def test_a_port_that_is_taken_is_named(served):
    """With a way out."""
    port = int(served.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}.*choose another --port"):
        server.listen("127.0.0.1", port)
    with pytest.raises(OSError, match="choose another --port"):
        server.listen("127.0.0.1", 70_000)


def test_without_plotly_the_extra_is_named(monkeypatch, capsys, tmp_path):
    """Before anything is compiled or written."""
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError):
        lab.play()
    assert cli.main(["lab", "play", "--export", str(tmp_path / "lessons.html")]) == 1
    assert "plotly" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []
    assert issubclass(MissingExtraError, ImportError)


def ended(host):
    """A page that is closed at once."""
    return types.SimpleNamespace(url=f"http://{host}:1/", wait=lambda: None)


@pytest.mark.parametrize("host", ["0.0.0.0", "example.org", "192.168.0.7", "127.0.0.1", "::1", "localhost"])
def test_listening_beyond_this_machine_warns(host, monkeypatch, capsys):
    """Before it begins; the browser opens unless told otherwise."""
    opened = []
    monkeypatch.setattr(command, "play", lambda host, port: nullcontext(ended(host)))
    monkeypatch.setattr(command.webbrowser, "open", opened.append)
    command.serve(host, 0, opens=host == "localhost")
    shown = capsys.readouterr()
    assert ("warning" in shown.err) == (host in ("0.0.0.0", "example.org", "192.168.0.7"))
    assert f"http://{host}:1/ (end with Ctrl-C)" in shown.out
    assert opened == (["http://localhost:1/"] if host == "localhost" else [])


def test_combinations_are_in_the_order_in_which_the_page_counts():
    """The last slider's stops change fastest; a lesson's own settings stay as they are."""
    lesson = LESSONS["exploding"]
    found = [*export.combinations(lesson)]
    norms, rates = lesson.grid.values()
    assert len(found) == len(norms) * len(rates)
    place = 3 * len(rates) + 2
    assert found[place]["marbles"][1]["max_grad_norm"] == norms[3]
    assert found[place]["marbles"][0]["lr"] == rates[2]
    assert lesson.settings["marbles"][0]["lr"] == 0.2
    noisy = [*export.combinations(LESSONS["bouncing"])]
    assert noisy[1]["noise"] == LESSONS["bouncing"].grid["noise"][1]


@pytest.mark.exhaustive
def test_the_exported_page_needs_nothing_else(tmp_path, monkeypatch, capsys):
    """One file with plotly.js, and a path for each combination; here of two lessons."""
    monkeypatch.setattr(export, "LESSONS", {name: LESSONS[name] for name in ("stuck", "homing")})
    file = tmp_path / "lessons.html"
    assert cli.main(["lab", "play", "--export", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    text = file.read_text(encoding="utf-8")
    assert "plotly.js v" in text
    assert "<script src" not in text
    table = json.loads(re.search(r"^const TABLE = (.*);$", text, re.MULTILINE)[1])
    assert {*table["landscapes"]} == {"potholes", "bowl"}
    for name, places in table["lessons"].items():
        combinations = [*export.combinations(LESSONS[name])]
        assert len(places) == len(combinations)
        told = server.paths(combinations[-1])["marbles"]
        assert [table["marbles"][place] for place in places[-1]] == told
    assert len(table["marbles"]) < sum(map(len, (each for places in table["lessons"].values() for each in places)))


def test_an_export_that_fails_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    """Whole."""
    file = tmp_path / "lessons.html"
    file.write_text("before")
    monkeypatch.setattr(export.reply, "told", lambda settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["lab", "play", "--export", str(file)])
    assert file.read_text() == "before"
    assert [*tmp_path.iterdir()] == [file]
    assert cli.main(["lab", "play", "--export", str(tmp_path)]) == 1
    assert "a file is to be written there" in capsys.readouterr().err


SERVING = """
import sys
from fastopt import cli
from fastopt.lab.play import warm

warm.compile_all = lambda: None  # all kernels would take a minute
sys.exit(cli.main(["lab", "play", "--no-open"]))
"""


def test_an_interrupt_ends_the_command(tmp_path):
    """With no traceback, and with the status that shells know."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVING], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ \(end with Ctrl-C\)\n", process.stdout.readline())
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "")
