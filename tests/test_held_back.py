"""Signals that are held back: their handlers run when the block has ended, and stand where they stood."""

import signal
import socket
import threading

import pytest

from fastopt.step.interrupts import SIGNALS, HeldBack


@pytest.fixture
def handlers():
    """Handlers of the test's own, for some signals, by number; those before are put back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield lambda new: [signal.signal(number, handler) for number, handler in new.items()]
    for number, handler in before.items():
        signal.signal(number, handler)


def raising(error):
    """Return a handler that raises."""

    def handler(number, frame):
        raise error(number)

    return handler


def held(act):
    """Do something while signals are held back."""
    with HeldBack():
        act()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1])
def test_a_signal_waits_until_the_end(number, handlers):
    """All of the block runs; then the handler does, and its error is the block's."""
    handler = raising(ValueError)
    handlers({number: handler})
    done = []

    def act():
        for i in (1, 2):
            signal.raise_signal(number)
            done.append(i)

    with pytest.raises(ValueError, match=str(int(number))):
        held(act)
    assert done == [1, 2]
    assert signal.getsignal(number) is handler


def test_signals_of_several_kinds(handlers):
    """Each handler runs, in the order in which they came."""
    came = []
    handlers(dict.fromkeys((signal.SIGINT, signal.SIGUSR1), lambda number, frame: came.append(number)))
    with HeldBack():
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGINT)
        assert came == []
    assert came == [signal.SIGUSR1, signal.SIGINT]


def test_several_handlers_that_raise(handlers):
    """All of them run; the last error is raised, and has the one before for its context."""
    handlers({signal.SIGUSR1: raising(ValueError), signal.SIGINT: raising(KeyboardInterrupt)})
    with pytest.raises(KeyboardInterrupt) as caught:
        held(lambda: [signal.raise_signal(number) for number in (signal.SIGUSR1, signal.SIGINT)])
    first = caught.value.__context__
    assert (type(first), first.args, first.__context__) == (ValueError, (signal.SIGUSR1,), None)


def test_all_handlers_are_given_back_where_one_raises(handlers):
    """Also those of signals whose turn comes after."""
    new = {number: raising(RuntimeError) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    handlers(new)
    with pytest.raises(RuntimeError):
        held(lambda: [signal.raise_signal(number) for number in new])
    assert {number: signal.getsignal(number) for number in new} == new


def test_an_error_of_the_block_is_kept(handlers):
    """A signal's error has it for its context."""
    handlers({signal.SIGINT: raising(KeyboardInterrupt)})

    def act():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("of the block")

    with pytest.raises(KeyboardInterrupt) as caught:
        held(act)
    assert isinstance(caught.value.__context__, ValueError)
    with pytest.raises(ZeroDivisionError):
        held(lambda: 1 / 0)


def test_blocks_within_blocks(handlers):
    """The outermost one decides."""
    handler = raising(KeyboardInterrupt)
    handlers({signal.SIGINT: handler})
    done = []

    def act():
        held(lambda: signal.raise_signal(signal.SIGINT))
        done.append("inner")
        held(lambda: done.append("another"))

    with pytest.raises(KeyboardInterrupt):
        held(act)
    assert done == ["inner", "another"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_python_does_not_handle_stays_as_it_is(handlers):
    """What is ignored, or ends the process, has no handler that could interrupt anything."""
    handlers({signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL})
    with HeldBack():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        signal.raise_signal(signal.SIGINT)


def test_other_threads_have_nothing_to_hold_back():
    """Handlers run in the main thread alone, and only it may set them."""
    before, during = signal.getsignal(signal.SIGINT), []

    def work():
        with HeldBack():
            during.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert during == [before]


def test_event_loops_see_a_signal_once():
    """The descriptor by which they wake up gets it when it comes, and not once more at the end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno()), signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        held(lambda: signal.raise_signal(signal.SIGUSR1))
        ours.settimeout(1.0)
        assert ours.recv(10) == bytes([signal.SIGUSR1])
    finally:
        signal.set_wakeup_fd(before[0])
        signal.signal(signal.SIGUSR1, before[1])
        ours.close()
        theirs.close()
