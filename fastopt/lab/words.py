"""What AdaGrad was invented for: a table with a row for each word, of which most words come seldom."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base import Optimizer
from ..checks import Count
from ..optimizers import SGD, Adagrad
from ..progress import track
from ..sparse_rows import SparseRows
from . import look
from .network import Array
from .training import EPS, MOMENTUM, best

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOPICS = (2, 50)  # the fewest and the most
FEWEST = 10  # words of a paragraph
HELD_OUT = 5  # every fifth paragraph of a topic is not trained on
BATCH = 16  # paragraphs
# Tried by each rule, which then has its best, by the loss on what it is trained on.
RATES = {
    "sgd": (3.0, 10.0, 30.0, 100.0, 300.0),
    "momentum": (0.3, 1.0, 3.0, 10.0, 30.0),
    "adagrad": (0.1, 0.3, 1.0, 3.0, 10.0),
}
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "momentum": partial(SGD, momentum=MOMENTUM, lazy_update=True),
    "adagrad": partial(Adagrad, eps=EPS),
}
SEEN = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # from how many occurrences on a word belongs to the next kind
RARE, FREQUENT = SEEN[0], SEEN[-2]  # the kinds that the report compares


@dataclass(frozen=True)
class Paragraphs:
    """Paragraphs as bags of words: all occurrences one after the other.

    Attributes
    ----------
    words : ndarray of int64
        The number of each occurrence's word.
    begins : ndarray of int64
        Where each paragraph begins, and where the last one ends.
    topics : ndarray of int64
        The topic of each paragraph.
    """

    words: Array
    begins: Array
    topics: Array

    @classmethod
    def of(cls, bags: Sequence[Sequence[int]], topics: Sequence[int]) -> Paragraphs:
        """Put bags of words one after the other."""
        begins = np.cumsum([0, *map(len, bags)])
        return cls(np.array([word for bag in bags for word in bag], np.int64), begins, np.array(topics))

    def __len__(self) -> int:
        """Count the paragraphs."""
        return len(self.topics)

    def chosen(self, which: Array) -> Paragraphs:
        """Return some of the paragraphs."""
        bags = [self.words[self.begins[i] : self.begins[i + 1]] for i in which]
        return Paragraphs(np.concatenate(bags), np.cumsum([0, *map(len, bags)]), self.topics[which])


@dataclass(frozen=True)
class Corpus:
    """Paragraphs to train on and others, by topic; words that come in the latter alone are left out there."""

    trained: Paragraphs
    held_out: Paragraphs
    words: int  # different ones
    topics: int
    counts: Array  # how often each comes in what is trained on


def load() -> dict[str, str]:
    """Return the texts behind ``help("topics")``, half a million characters of English that Python brings."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return topics


def corpus(texts: Mapping[str, str], topics: int) -> Corpus:
    """Split texts into paragraphs, of the topics that have the most."""
    found = {name: list(paragraphs(text)) for name, text in sorted(texts.items())}
    largest = sorted(found, key=lambda name: -len(found[name]))[:topics]
    trained = [(bag, k) for k, name in enumerate(largest) for i, bag in enumerate(found[name]) if i % HELD_OUT]
    others = [(bag, k) for k, name in enumerate(largest) for i, bag in enumerate(found[name]) if not i % HELD_OUT]
    counts = Counter(word for bag, _ in trained for word in bag)
    numbers = {word: number for number, word in enumerate(sorted(counts))}

    def numbered(pairs: Sequence[tuple[list[str], int]]) -> Paragraphs:
        bags = [[numbers[word] for word in bag if word in numbers] for bag, _ in pairs]
        kept = [i for i, bag in enumerate(bags) if bag]
        return Paragraphs.of([bags[i] for i in kept], [pairs[i][1] for i in kept])

    often = np.array([counts[word] for word in numbers])
    return Corpus(numbered(trained), numbered(others), len(numbers), len(largest), often)


def paragraphs(text: str) -> Iterator[list[str]]:
    """Yield the words of each paragraph that has enough of them."""
    for paragraph in re.split(r"\n\s*\n", text):
        words = re.findall(r"[a-z]+", paragraph.lower())
        if len(words) >= FEWEST:
            yield words


def new_parameters(words: int, topics: int) -> dict[str, Array]:
    """Return a score of each topic for each word, and for none: all 0."""
    return {"words": np.zeros((words, topics), np.float32), "bias": np.zeros(topics, np.float32)}


def scores(params: Mapping[str, Array], bags: Paragraphs) -> Array:
    """Return the scores of the topics of each paragraph: the mean over its words."""
    lengths = np.diff(bags.begins).astype(np.float32)[:, np.newaxis]
    sums = np.add.reduceat(params["words"][bags.words], bags.begins[:-1], axis=0)
    total: Array = sums / lengths + params["bias"]
    return total


def probabilities(params: Mapping[str, Array], bags: Paragraphs) -> Array:
    """Return those of the topics of each paragraph."""
    found = scores(params, bags)
    raised = np.exp(found - found.max(axis=1, keepdims=True))
    shares: Array = raised / raised.sum(axis=1, keepdims=True)
    return shares


def loss(params: Mapping[str, Array], bags: Paragraphs) -> float:
    """Return the mean cross-entropy of the topics, in nats."""
    right = probabilities(params, bags)[np.arange(len(bags)), bags.topics]
    return float(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean(dtype=np.float64))


def gradients(params: Mapping[str, Array], bags: Paragraphs) -> dict[str, Any]:
    """Return those of the loss: of the table, a row for each occurrence of a word."""
    error = probabilities(params, bags)
    error[np.arange(len(bags)), bags.topics] -= 1
    error /= len(bags)
    lengths = np.diff(bags.begins)
    of_words = np.repeat(error / lengths[:, np.newaxis].astype(np.float32), lengths, axis=0)
    return {"words": SparseRows(bags.words, of_words), "bias": error.sum(axis=0)}


def train(data: Corpus, rule: str, lr: float, epochs: int, seed: int) -> dict[str, Any]:
    """Train by one rule, at one rate: return parameters, and the losses after each epoch."""
    rng = np.random.default_rng(seed)
    params = new_parameters(data.words, data.topics)
    optimizer = OPTIMIZERS[rule](params, lr=lr)
    found: dict[str, Any] = {"lr": lr, "params": params, "trained": [], "held out": []}
    for _ in range(epochs):
        order = rng.permutation(len(data.trained))
        for begin in range(0, len(order), BATCH):
            optimizer.step(gradients(params, data.trained.chosen(order[begin : begin + BATCH])))
        found["trained"].append(loss(params, data.trained))
        found["held out"].append(loss(params, data.held_out))
    return found


def evidence(params: Mapping[str, Array], data: Corpus) -> list[float]:
    """Return how much words of each kind say for the topic in which they occur, by how often they come.

    It is the word's score of that topic, less its mean score, as a mean over the occurrences that were trained on.
    """
    bags, table = data.trained, params["words"]
    topics = np.repeat(bags.topics, np.diff(bags.begins))
    said = table[bags.words, topics] - table.mean(axis=1)[bags.words]
    kinds = kind_of(data.counts)[bags.words]
    of_kinds = [said[kinds == kind] for kind in range(len(SEEN))]
    return [float(each.mean(dtype=np.float64)) if len(each) else 0.0 for each in of_kinds]


def kind_of(counts: Array) -> Array:
    """Return the kind of words that come so often: the place of the last of SEEN that they reach."""
    kinds: Array = np.searchsorted(SEEN, counts, side="right") - 1
    return kinds


def words(epochs: int = 10, topics: int = 20, seed: int = 0) -> tuple[Figure, dict[str, Any]]:
    """Train a classifier of paragraphs, by what words they have, with sparse gradients.

    It learns of which topic of Python's own help a paragraph is: a topic's score is the mean over the words of the
    paragraph, each of which has a row of numbers, one for each topic. A step with 16 paragraphs touches some hundred
    rows of several thousand. Gradient descent, momentum (lazily: rows without a gradient stand still) and AdaGrad each
    have the best of five rates, by the loss on what they are trained on.

    Parameters
    ----------
    epochs : int, default 10
        Passes over the paragraphs, 1 or more.
    topics : int, default 20
        Those with the most paragraphs, from 2 to 50.
    seed : int, default 0
        The seed of their order.

    Returns
    -------
    figure : matplotlib.figure.Figure
        The loss by epoch, on paragraphs that were not trained on; and how much words say for their topic, by how often
        they come.
    numbers : dict
        ``{"rules": {rule: {"lr": ..., "trained": [...], "held out": [...], "right": ..., "evidence": [...]}}, ...}``:
        the losses after each epoch, the share of paragraphs that were not trained on whose topic is found, and the
        evidence of words of each kind. ``seen`` has from how many occurrences on a word is of the next kind, ``words``
        how many there are of each, ``paragraphs`` how many were trained on and were not, ``touched`` the mean share of
        the rows that a step touches.

    Raises
    ------
    ImportError
        If matplotlib is not installed; the extra ``fastopt[lab]`` has it.
    TypeError, ValueError
        If an argument is out of range.

    References
    ----------
    .. [1] J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
       Optimization", JMLR 12, 2011.
    """
    epochs = Count(1, 1000).check("epochs", epochs)
    topics = Count(*TOPICS).check("topics", topics)
    seed = Count().check("seed", seed)
    figure, axes = look.new_figure([["loss", "evidence"]], height=4.2)
    data = corpus(load(), topics)
    tried = [(rule, lr) for rule, rates in RATES.items() for lr in rates]
    runs = [(rule, train(data, rule, lr, epochs, seed)) for rule, lr in track(tried, "training")]
    rules = {}
    for rule in RATES:
        chosen = best([run for name, run in runs if name == rule], lambda run: run["trained"][-1])
        params = chosen.pop("params")
        right = probabilities(params, data.held_out).argmax(axis=1) == data.held_out.topics
        rules[rule] = {**chosen, "right": float(right.mean()), "evidence": evidence(params, data)}
    kinds = kind_of(data.counts)
    numbers = {
        "rules": rules, "seen": list(SEEN), "epochs": epochs, "topics": topics, "seed": seed,
        "words": [int((kinds == kind).sum()) for kind in range(len(SEEN))],
        "paragraphs": [len(data.trained), len(data.held_out)],
        "touched": touched(data, seed),
    }  # fmt: skip
    draw(figure, axes, numbers)
    return figure, numbers


def touched(data: Corpus, seed: int) -> float:
    """Return the mean share of the rows that a step touches, over an epoch."""
    order = np.random.default_rng(seed).permutation(len(data.trained))
    batches = [data.trained.chosen(order[begin : begin + BATCH]) for begin in range(0, len(order), BATCH)]
    return float(np.mean([len(np.unique(batch.words)) for batch in batches])) / data.words


def draw(figure: Figure, axes: dict[str, Axes], numbers: dict[str, Any]) -> None:
    """Draw both panels."""
    for rule, found in numbers["rules"].items():
        look.draw_rule(axes["loss"], found["held out"], rule)
        colour, dash = look.RULE_LINES[rule]
        axes["evidence"].plot(
            numbers["seen"], found["evidence"], color=colour, linestyle=dash, linewidth=1.6, marker="o", label=rule
        )
    look.label_epochs(axes["loss"])
    axes["loss"].set(ylabel="loss of other paragraphs")
    axes["evidence"].set(xscale="log", xlabel="how often a word comes, at least", ylabel="what it says for its topic")
    axes["evidence"].axhline(0, color="black", linewidth=1, linestyle=":")
    ticks = numbers["seen"][::2]
    axes["evidence"].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes["evidence"].minorticks_off()
    look.add_legend(figure, axes["loss"])


def report(numbers: dict[str, Any]) -> str:
    """Describe the results in a table and three lines."""
    rules, seen = numbers["rules"], numbers["seen"]
    lines = [
        "What a word says for the topic in which it occurs, by how often it comes:",
        f"{'':10}" + "".join(f"{f'{start}+':>8}" for start in seen),
        f"{'words':10}" + "".join(f"{count:>8,}" for count in numbers["words"]),
    ]
    lines += [f"{rule:10}" + "".join(f"{said:8.2f}" for said in found["evidence"]) for rule, found in rules.items()]
    trained, others = numbers["paragraphs"]
    losses = ", ".join(f"{rule} {found['held out'][-1]:.3f} (rate {found['lr']:g})" for rule, found in rules.items())
    right = ", ".join(f"{rule} {found['right']:.0%}" for rule, found in rules.items())
    places = [seen.index(RARE), seen.index(FREQUENT)]
    shares = ", ".join(
        f"{rule} {found['evidence'][places[0]] / found['evidence'][places[1]]:.2f}" for rule, found in rules.items()
    )
    lines += [
        "",
        f"After {numbers['epochs']} epochs over {trained:,} paragraphs of {numbers['topics']} topics, each rule at its "
        f"best rate, the loss of {others:,} others is {losses}; the topic is right for {right}.",
        f"Words that come once say as much as those that come {FREQUENT} times or more, times: {shares}.",
        f"A step touches {numbers['touched']:.1%} of the {sum(numbers['words']):,} rows.",
    ]
    return "\n".join(lines)
