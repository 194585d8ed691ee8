"""The training loop: lowers the loss, resumes exactly, and refuses states it cannot resume from."""

import numpy as np
import pytest
import torch
from torch import nn

from latentsync_memsafe.latentsync.errors import TrainingError
from latentsync_memsafe.latentsync.training.loop import LoopOptions, train


def regression_step(module):
    """A linear fit to a fixed function of seeded inputs."""

    def step(i, rng, generator):
        inputs = torch.randn(8, 3, generator=generator)
        loss = (module(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        return loss, {"drawn": float(rng.random())}

    return step


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def options(**changes):
    return LoopOptions(**{"stage": "fit", "steps": 40, "learning_rate": 1e-2, **changes})


def test_the_loss_falls(tmp_path):
    module, seen = network(), []
    train(
        module,
        regression_step(module),
        options(report_every=1),
        tmp_path,
        lambda *a: seen.append(a[3]["loss"]),
    )
    assert np.mean(seen[-5:]) < 0.5 * np.mean(seen[:5])


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = network()
    train(whole, regression_step(whole), options(), tmp_path / "whole")

    class Stopped(Exception):
        pass

    calls = iter(range(1000))

    def check():
        if next(calls) == 17:
            raise Stopped

    cut = network()
    with pytest.raises(Stopped):
        train(cut, regression_step(cut), options(), tmp_path / "cut", check=check)
    again = network()
    train(again, regression_step(again), options(), tmp_path / "cut")
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_step_interrupted_while_it_changes_the_weights_is_not_saved(tmp_path, monkeypatch):
    whole = network()
    train(whole, regression_step(whole), options(save_every=10), tmp_path / "whole")
    lerp, calls = torch._foreach_lerp_, iter(range(1000))

    def interrupted(*inputs):
        if next(calls) == 25:
            raise KeyboardInterrupt
        return lerp(*inputs)

    monkeypatch.setattr(torch, "_foreach_lerp_", interrupted)
    cut = network()
    with pytest.raises(KeyboardInterrupt):
        train(cut, regression_step(cut), options(save_every=10), tmp_path / "cut")
    assert torch.load(tmp_path / "cut" / "fit.state.pt", weights_only=True)["step"] == 20
    again = network()
    train(again, regression_step(again), options(save_every=10), tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_the_result_is_the_average_of_the_weights(tmp_path):
    plain, averaged = network(), network()
    train(plain, regression_step(plain), options(average=0.0), tmp_path / "plain")
    train(averaged, regression_step(averaged), options(average=0.99), tmp_path / "averaged")
    state = torch.load(tmp_path / "averaged" / "fit.state.pt", weights_only=True)
    for last, raw, mean, kept in zip(
        plain.parameters(), state["parameters"], averaged.parameters(), state["averages"], strict=True
    ):
        assert torch.equal(last, raw)  # averaging does not change the training
        assert torch.equal(mean, kept)
        assert not torch.equal(mean, last)


def test_the_learning_rate_rises_stays_constant_and_falls():
    o = options(steps=1000, learning_rate=1.0)
    assert o.rate_at(0) == pytest.approx(1 / 50)
    assert o.rate_at(49) == o.rate_at(749) == 1.0
    assert o.rate_at(875) == pytest.approx(0.5)
    # Until the decay begins a longer run has the same rates.
    longer = options(steps=4000, learning_rate=1.0)
    assert [o.rate_at(i) for i in range(750)] == [longer.rate_at(i) for i in range(750)]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    module = network()

    def step(i, rng, generator):
        return module(torch.full((1, 3), torch.inf)).sum(), {}

    with pytest.raises(TrainingError, match="stage fit is nan at step 0; lower the learning rate"):
        train(module, step, options(), tmp_path)
    assert not list(tmp_path.glob("*"))


def test_the_state_of_another_network_is_refused(tmp_path):
    module = network()
    train(module, regression_step(module), options(steps=2), tmp_path)
    other = nn.Linear(3, 2)
    with pytest.raises(TrainingError, match="state of another network"):
        train(other, regression_step(other), options(steps=4), tmp_path)


@pytest.mark.parametrize("damage", ["empty", "junk", "cut", "list", "keys", "folder"])
def test_a_damaged_state_is_named(tmp_path, damage):
    module = network()
    train(module, regression_step(module), options(steps=2), tmp_path)
    path = tmp_path / "fit.state.pt"
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage in ("list", "keys"):
        torch.save([1, 2] if damage == "list" else {"step": 2}, path)
    else:
        path.write_bytes({"empty": b"", "junk": b"junk" * 50, "cut": whole[:-300]}[damage])
    message = r"fit\.state\.pt (is damaged|cannot be read).*; remove it to train"
    with pytest.raises(TrainingError, match=message):
        train(module, regression_step(module), options(steps=4), tmp_path)


def test_changed_settings_give_a_warning(tmp_path, caplog):
    module = network()

    def run(steps=2, **settings):
        train(module, regression_step(module), options(steps=steps, settings=settings), tmp_path)

    run(seed=1, base="demo")
    run(seed=1, base="demo")
    assert not caplog.records
    for _ in range(2):  # the second run warns too, because nothing was trained in the first one
        run(seed=9, base="demo")
        (record,) = caplog.records
        assert (
            "for 2 steps with seed 1; training resumes from there. To train with seed 9"
            in record.getMessage()
        )
        caplog.clear()
    run(steps=1, seed=1, base="demo")
    assert "for 2 steps already, more than the 1 requested; nothing is trained" in caplog.text
