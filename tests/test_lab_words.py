"""The lab's classifier of paragraphs: its gradients, and what it says of rare words."""

import importlib

import numpy as np
import pytest

words = importlib.import_module("fastopt.lab.words")  # fastopt.lab.words is the experiment itself

TEXTS = {
    "plants": "\n\n".join(["green leaf " * 5 + f"tree{'xyz'[i % 3]}" for i in range(10)]),
    "stones": "\n\n".join(["grey hard " * 5 + f"rock{'xyz'[i % 3]}" for i in range(10)]) + "\n\ntoo short",
    "sand": "grain " * 12,
}
STEP = 1e-2
LOST = 1e-4  # of a derivative by differences of float32 losses around 1


@pytest.fixture(scope="module")
def data():
    return words.corpus(TEXTS, 2)


def test_paragraphs_are_split_and_counted(data):
    """Every fifth is held out; short ones, and topics beyond those asked for, are left out."""
    assert (len(data.trained), len(data.held_out), data.topics) == (16, 4, 2)
    assert data.trained.topics.tolist() == [0] * 8 + [1] * 8
    assert np.diff(data.trained.begins).tolist() == [11] * 16
    assert sorted(data.counts.tolist()) == sorted([40] * 4 + [count for count in (3, 3, 2) for _ in range(2)])
    chosen = data.trained.chosen(np.array([9, 2]))
    assert chosen.topics.tolist() == [1, 0]
    assert chosen.words[:11].tolist() == data.trained.words[99:110].tolist()


def test_gradients_are_those_of_the_loss(data):
    """By finite differences in every parameter of the table and the bias."""
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(p.shape).astype(np.float32) for name, p in
              words.new_parameters(data.words, 2).items()}  # fmt: skip
    found = words.gradients(params, data.trained)
    table = np.zeros_like(params["words"])
    np.add.at(table, found["words"].indices, found["words"].values)
    for name, gradient in (("words", table), ("bias", found["bias"])):
        for place in np.ndindex(gradient.shape):
            losses = []
            for step in (STEP, -STEP):
                moved = {**params, name: params[name].copy()}
                moved[name][place] += step
                losses.append(words.loss(moved, data.trained))
            assert abs((losses[0] - losses[1]) / (2 * STEP) - gradient[place]) < LOST


@pytest.mark.parametrize("rule", words.RATES)
def test_every_rule_learns(rule, data):
    """Topics whose words differ are told apart, of paragraphs that were not seen as well."""
    found = words.train(data, rule, words.RATES[rule][2], epochs=5, seed=0)
    assert found["held out"][-1] < 0.5 * np.log(2)
    assert found["trained"][-1] < found["trained"][0]
    assert (words.probabilities(found["params"], data.held_out).argmax(axis=1) == data.held_out.topics).all()


def test_evidence_is_a_mean_over_occurrences(data):
    """Of the score of the right topic, less the mean score; kinds without words have none."""
    params = words.new_parameters(data.words, 2)
    often = data.counts == 40
    params["words"][often] = [3, 1]
    found = words.evidence(params, data)
    assert found[words.SEEN.index(32)] == pytest.approx(0)  # half of them are of either topic
    params["words"][~often, 1] = 2
    found = words.evidence(params, data)
    assert found[words.SEEN.index(2)] == pytest.approx(0)
    assert found[0] == found[-1] == 0.0


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rare_words_learn_by_adagrad(seed):
    """Relative to frequent ones, and to the other rules; the page says so."""
    rules = words.words(seed=seed)[1]["rules"]
    share = {rule: found["evidence"][0] / found["evidence"][-2] for rule, found in rules.items()}
    assert share["adagrad"] > 5 * max(share["sgd"], share["momentum"])
