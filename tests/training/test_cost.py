"""The cost table: what the meta device counts is what the arithmetic says, and what fits a card follows from it."""

import dataclasses
import sys

import pytest
import torch

from train import cost
from train.cost import BASES, GIB, TERA, Card, Plan, encoder_flops, plan
from train.meta_step import Case, Meter, build, count_step

SD3 = BASES["sd3-medium"]
TINY = dataclasses.replace(SD3, depth=2, hidden_size=128, context_size=64, pooled_size=64)
WIDTH, DEPTH, TEXT, TOKENS = 1536, 24, 333, 4096


def case(depth: int, keep: float = 1.0, family: str = "psi_dit", num_blocks: int = 1) -> Case:
    """A slice of SD3-medium at 1024 px."""
    return Case(dataclasses.replace(SD3, depth=depth), family, 1024, keep, num_blocks)


def whole(more: Case, less: Case, what: str) -> float:
    """TFLOPs of 24 blocks, from two slices: ends and embeddings cancel, as the arithmetic leaves them out."""
    repeats = DEPTH / (more.base.depth - less.base.depth)
    return (getattr(count_step(more), what) - getattr(count_step(less), what)) * repeats / TERA


def attention_tflops(queries: int, keys: int) -> float:
    """Both products of one attention in all blocks, 2 operations per multiplication."""
    return 2 * 2 * queries * keys * WIDTH * DEPTH / TERA


def test_parameters_of_sd3_medium_and_its_control():
    base, control = build(Case(SD3, "psi_dit", 1024))
    assert sum(p.numel() for p in base.parameters()) == 2_028_328_000
    assert sum(p.numel() for p in control.parameters()) == pytest.approx(24 * 24 * WIDTH**2, rel=0.03)
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in control.parameters()} == {torch.float32}
    step = count_step(case(2))
    assert step.state_bytes == step.frozen * 2 + step.trained * 20


@pytest.mark.parametrize(("keep", "tflops"), [(1.0, 26.2), (0.5, 19.1), (0.25, 16.0)])
def test_forward_of_psi_dit_is_what_the_arithmetic_says(keep, tflops):
    assert whole(case(3, keep), case(2, keep), "forward_flops") == pytest.approx(tflops, rel=0.01)


@pytest.mark.parametrize(("copies", "tflops"), [(1, 13.6), (2, 18.3)])
def test_forward_of_the_controlnet_is_what_the_arithmetic_says(copies, tflops):
    # One copy for every second block, or for every block.
    more, less = case(4, 1.0, "controlnet", 2 * copies), case(2, 1.0, "controlnet", copies)
    assert whole(more, less, "forward_flops") == pytest.approx(tflops, rel=0.01)


@pytest.mark.parametrize(("keep", "tflops"), [(1.0, 69.7), (0.25, 39.1)])
def test_step_of_psi_dit_is_the_arithmetic_and_what_it_leaves_out(keep, tflops):
    # The arithmetic takes the backward pass for once the forward pass in the frozen base and twice in the control.
    # Attention has no weights to be spared, so it costs twice in the base too, and a fused kernel computes the scores
    # once more: 2.5 times in all.
    together = TOKENS + round(keep * TOKENS)
    left_out = 1.5 * attention_tflops(TOKENS + TEXT, TOKENS + TEXT) + 0.5 * attention_tflops(together, together)
    counted = whole(case(3, keep), case(2, keep), "flops")
    assert counted - left_out == pytest.approx(tflops, rel=0.01)
    assert counted > 1.1 * tflops


def test_dropping_three_quarters_of_the_lr_tokens_saves_two_fifths():
    steps = [whole(case(3, keep), case(2, keep), "flops") for keep in (1.0, 0.25)]
    assert steps[0] / steps[1] == pytest.approx(1.74, abs=0.02)


def test_checkpointing_trades_one_more_forward_pass_for_memory():
    steps = {(depth, again): count_step(case(depth), recompute=again) for depth in (2, 3) for again in (False, True)}
    assert steps[3, True].flops == pytest.approx(steps[3, False].flops + steps[3, False].forward_flops, rel=0.01)
    per_block = [steps[3, again].activation_bytes - steps[2, again].activation_bytes for again in (False, True)]
    # All that is kept from a block is its input: both streams and the text, in float32.
    assert per_block[1] == pytest.approx((2 * TOKENS + TEXT) * WIDTH * 4, rel=0.05)
    assert per_block[0] > 10 * per_block[1]


def test_meter_follows_what_lives():
    with torch.device("meta"):
        given = torch.empty(1000, 1000)
    with Meter([given]) as meter:
        view = given[:10]
        one = given + 1
        two = one @ given
        assert (meter.live_bytes, meter.flops) == (8_000_000, 2 * 1000**3)
        del one, view
        assert (meter.live_bytes, meter.peak_bytes) == (4_000_000, 8_000_000)
        two.mul_(2)
    assert (meter.live_bytes, meter.peak_bytes) == (4_000_000, 8_000_000)


def test_a_card_takes_as_many_samples_as_memory_allows():
    small = Case(TINY, "psi_dit", 256)
    state = count_step(small).state_bytes + cost.AUTOENCODER_BYTES
    one, four = (count_step(small, micro_batch=number).activation_bytes for number in (1, 4))
    encoding = cost.ENCODER_BYTES_PER_PIXEL * 256**2

    def planned(room: float) -> Plan | None:
        card = Card(name="card", gib=1, tflops=1.0, usable=(state + room) / GIB)
        return plan(small, card, 1, 0.5)

    assert max(four, 4 * encoding) == 4 * encoding  # the autoencoder decides on a model this small
    assert planned(4.5 * encoding).micro_batch == 4
    assert planned(0.5 * encoding) is None
    flops = count_step(small).flops + 4 * encoder_flops(256)
    assert planned(4.5 * encoding).seconds == pytest.approx(flops / 0.5e12)
    assert one < four


def test_checkpointing_and_sharding_make_room(monkeypatch):
    monkeypatch.setattr(cost, "ENCODER_BYTES_PER_PIXEL", 1)
    slices = case(2)
    plain, again = (count_step(slices, recompute=recompute) for recompute in (False, True))
    between = (plain.activation_bytes + again.activation_bytes) / 2

    def card(room: float) -> Card:
        return Card(name="card", gib=1, tflops=1.0, usable=(cost.AUTOENCODER_BYTES + room) / GIB)

    assert not plan(slices, card(plain.state_bytes + 2 * plain.activation_bytes), 1, 0.4).recompute
    assert plan(slices, card(plain.state_bytes + between), 1, 0.4).recompute
    tight = card(0.99 * plain.state_bytes + again.activation_bytes)
    assert plan(slices, tight, 1, 0.4) is None
    # Two blocks of two stand gathered: with so few, the shards save moments and average only.
    gathered = plain.frozen * 2 + plain.trained * 4
    assert plan(slices, card(plain.state_bytes / 8 + gathered + between), 8, 0.4).recompute


def test_command_prints_both_tables(capsys, monkeypatch):
    monkeypatch.setitem(cost.BASES, "sd3-medium", TINY)
    monkeypatch.setattr(sys, "argv", ["cost", "--size", "256", "--keep", "1", "0.5", "--num-blocks", "2"])
    cost.main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| Psi-DiT | 256 | 50 % |") for line in lines) == 3  # counts, 1 GPU, 8 GPUs
    assert sum(line.startswith("| ControlNet, 2 blocks | 256 | 100 % |") for line in lines) == 3
    assert any("computed, not measured" in line for line in lines)
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {9, 11}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "1000"], "multiple of 16, got [1000]"),
        (["--keep", "0"], "in (0, 1], got [0.0]"),
        (["--num-blocks", "25"], "from 1 to 24, got 25"),
        (["--utilisation", "40"], "in (0, 1]"),
    ],
)
def test_impossible_settings_are_refused(words, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cost", *words])
    with pytest.raises(SystemExit, match="2"):
        cost.main()
    assert message in capsys.readouterr().err
