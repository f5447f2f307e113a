"""Interrupts acts of an optimizer at every point, and compares with twins that are not interrupted; no tests here.

CPython delivers a signal when a function begins, when a call returns, and when a loop jumps back. SIGINT becomes
pending just ahead of each of these points, one after the other, and CPython delivers it as it does any other: where it
cannot come, as between a lock and the block that it guards, it does not come here either.
"""

import ctypes
import dis
import functools
import gc
import itertools
import operator
import signal
import sys
import threading
from pathlib import Path

from processes import DEADLOCK

import fastopt
from fastopt import kernels

FASTOPT = (*fastopt.__path__, *kernels.__path__)
EVERYWHERE = ("",)
FURTHER = 2  # steps that are taken afterwards


class Interrupt:
    """Makes SIGINT pending, and not by a call: when one returns, CPython would deliver it at once."""

    send = ctypes.PyDLL(None)["raise"]
    now = property(operator.methodcaller("send", signal.SIGINT))


INTERRUPT = Interrupt()


CALLS = {}  # by the id of a code object, whose hash takes long: the code, and where its calls and jumps back are


def calls(code):
    """Where a code object's calls and jumps back are."""
    if id(code) not in CALLS:
        names = {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}
        CALLS[id(code)] = code, {offset for offset, name in names.items() if interruptible(name)}
    return CALLS[id(code)][1]


def interruptible(name):
    """Say whether a signal may come once an instruction of that name is done."""
    return name.startswith("CALL") or "JUMP_BACKWARD" in name or name == "JUMP_ABSOLUTE"


class Tracer:
    """A trace function that interrupts functions of some folders at the point of that number, counted from 1.

    Each instruction counts as often as it is reached, or once.
    """

    def __init__(self, number, folders, once):
        self.left = number
        self.folders = folders
        self.passed = set() if once else None

    def __call__(self, frame, event, argument):
        """Trace a function, which counts as well, but for one that is called where the interrupt comes anyway."""
        if not self.is_meant(frame):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        before = frame.f_back
        if before.f_lasti not in calls(before.f_code) or not self.is_meant(before):
            self.left -= self.is_new(frame)
            if self.left == 0:
                sys.settrace(None)
                INTERRUPT.now  # noqa: B018 (to read it is what sends the signal)
                return None

        points = calls(frame.f_code)

        def trace(frame, event, argument):
            if event == "opcode" and frame.f_lasti in points and self.is_new(frame):
                self.left -= 1
                if self.left == 0:
                    sys.settrace(None)
                    INTERRUPT.now  # noqa: B018 (likewise)
            return trace

        return trace

    def is_meant(self, frame):
        """Say whether a function stands in one of the folders."""
        return frame.f_code.co_filename.startswith(self.folders)

    def is_new(self, frame):
        """Say whether an instruction counts."""
        if self.passed is None:
            return True
        point = id(frame.f_code), frame.f_lasti
        new = point not in self.passed
        self.passed.add(point)
        return new


def interrupted(act, number, folders=FASTOPT, once=True):
    """Act, and be interrupted at the point of that number; return where that was, or None if there are fewer points."""
    came, tracer = [], Tracer(number, folders, once)

    def handler(number, frame):
        came.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})")
        raise KeyboardInterrupt

    handler_before, tracer_before = signal.signal(signal.SIGINT, handler), sys.gettrace()
    passed_on = False
    gc.disable()  # what is called back by a collection, as hypothesis is, would swallow the interrupt
    try:
        sys.settrace(tracer)
        act()
        sys.settrace(None)  # where an interrupt comes that has been held back until then
    except KeyboardInterrupt:
        passed_on = True
    finally:
        sys.settrace(tracer_before)
        handler_after = signal.signal(signal.SIGINT, handler_before)
        gc.enable()
    assert handler_after is handler, "another handler was left behind"
    if tracer.left > 0:
        return None
    assert passed_on, f"the interrupt was lost that came at {came}"
    return came[0]


def check(make, before=0, act=None, every=1, first=1, folders=FASTOPT, once=True):
    """Assert that an act, interrupted anywhere, has done nothing or all, and that training goes on from there.

    Parameters
    ----------
    make : callable
        Makes a subject: it has an optimizer, ``step(number)``, and ``seen()``, all that a user sees of it, by name.
    before : int
        The steps that it takes first.
    act : callable, optional
        ``act(subject)``; without it, the next step.
    every : int
        Of so many points in a row one is tried.
    first : int
        The first point that is tried, counted from 1.
    folders : tuple of str
        Where the functions stand that are interrupted.
    once : bool
        Whether an instruction that is reached several times is one point, and not several.
    """

    def started():
        subject = make()
        for number in range(before):
            subject.step(number)
        return subject

    act, steps = (act, 0) if act else (lambda subject: subject.step(before), 1)
    nothing = followed(started(), before)
    subject = started()
    act(subject)
    everything = followed(subject, before + steps)
    faults, subjects = {}, []
    for number in itertools.count(first, every):
        subject = started()
        try:
            at = interrupted(functools.partial(act, subject), number, folders, once)
        except AssertionError as error:
            faults[str(error)] = ""
            continue
        if at is None:
            assert number > first, "there was no point at which to interrupt"
            break
        if fault := fault_of(subject, before, steps, nothing, everything):
            faults.setdefault(at, fault)
        subjects.append((at, subject))
    faults |= locked(subjects)
    assert not faults, f"torn at {len(faults)} places:\n" + "\n".join(
        f"  {at}: {fault}" for at, fault in faults.items()
    )


def followed(subject, number):
    """What is seen of a subject, and what after each of some further steps."""
    seen = [subject.seen()]
    for further in range(FURTHER):
        subject.step(number + further)
        seen.append(subject.seen())
    return seen


def fault_of(subject, before, steps, nothing, everything):
    """Say what is wrong with an interrupted subject; return "" if it goes on like one of its twins."""
    try:
        seen = subject.seen()
        if seen not in (nothing[0], everything[0]):
            return difference(seen, nothing[0], everything[0])
        number, twin = (before, nothing) if seen == nothing[0] else (before + steps, everything)
        return "" if followed(subject, number) == twin else "it does not go on as its twin does"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def difference(seen, nothing, everything):
    """Say which parts were done, which were not, and which are neither."""
    parts = {"done": [], "not done": [], "neither": []}
    for name in {**nothing, **everything, **seen}:
        value, old, new = seen.get(name), nothing.get(name), everything.get(name)
        if old != new or value != old:
            parts["done" if value == new else "not done" if value == old else "neither"].append(name)
    return "; ".join(f"{part}: {', '.join(names)}" for part, names in parts.items() if names)


def locked(subjects):
    """Name the subjects whose state dict another thread cannot get, by where they were interrupted."""
    reached, faults = [], {}

    def ask():
        for at, subject in subjects:
            reached.append(at)
            try:
                subject.optimizer.state_dict()
            except Exception as error:
                faults[at] = f"its state dict in another thread: {type(error).__name__}: {error}"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(DEADLOCK)
    if thread.is_alive():
        return {**faults, reached[-1]: "its lock is held"}
    assert len(reached) == len(subjects), f"the thread ended at {reached[-1]}"
    return faults
