"""The State benchmark is the published one, its classifier learns, and its figures have controls."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.state import StateClassifier, amortised_beside_optimal, ranks, state_classifier, state_sequences


def test_the_sequences_are_those_of_the_definition() -> None:
    data = state_sequences(2000, seed=3)
    state = data.truth[..., 2].numpy()
    assert abs(state.mean() - 0.419) < 0.01
    change = np.diff(state.astype(int), axis=1)
    left = {of: (change[state[:, :-1] == of] != 0).mean() for of in (0, 1)}
    assert abs(1 / left[0] - 20) < 0.6
    assert abs(1 / left[1] - 14.1) < 0.6
    for of, mean in ((0, [0.1, 1.6, 0.5]), (1, [-0.1, -0.4, -1.5])):
        cells = data.x.numpy()[state == of]
        np.testing.assert_allclose(cells.mean(0), mean, atol=0.02)
        covariance = 0.801 * np.eye(3)
        covariance[0, 1 + of] = covariance[1 + of, 0] = 0.01
        np.testing.assert_allclose(np.cov(cells.T), covariance, atol=0.02)
    deciding = data.x[data.truth].numpy()
    label = data.y.flatten().numpy()
    for low, high in ((-2, -1), (0, 0.5), (1, 2)):
        within = (deciding > low) & (deciding < high)
        expected = (1 / (1 + np.exp(-2 * deciding[within]))).mean()
        assert abs(label[within].mean() - expected) < 0.01


def test_predicted_masks_follow_a_model_and_not_the_truth() -> None:
    """Of a model that learned the states they rank the cells above chance, of one that learned nothing they do not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train, test = state_sequences(128, 24, seed=0), state_sequences(32, 24, seed=1)
    model = state_classifier(train, hidden=16, epochs=40, learning_rate=5e-3)
    with torch.no_grad():
        assert float((model(test.x).argmax(2) == test.y).float().mean()) > 0.75
    asked = {"optimal": {"epochs": 2}, "amortised": {"epochs": 20, "learning_rate": 0.01, "gap_epochs": 0}}
    torch.manual_seed(0)
    learned = amortised_beside_optimal(model, train, test, compared=32, **asked)
    ignorant = amortised_beside_optimal(StateClassifier(16).eval(), train, test, compared=32, **asked)
    torch.set_num_threads(threads)
    assert learned["amortised_auroc"] > 0.8 > 0.7 > ignorant["amortised_auroc"]
    assert learned["amortised_speedup"] > 0
    assert learned["amortised_auprc_gap"] == learned["extremal_auprc"] - learned["amortised_auprc"]


def test_ranks_of_the_truth_are_perfect_and_of_noise_are_not() -> None:
    truth = state_sequences(20, 30).truth
    assert min(ranks(-truth.float(), truth)) > 0.999
    assert abs(ranks(torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)), truth)[0] - 0.5) < 0.05
