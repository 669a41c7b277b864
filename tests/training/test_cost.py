"""The cost table: what the meta device counts is what the arithmetic says, and what fits a card follows from it."""

import dataclasses
import sys

import pytest
import torch

from train import cost
from train.cost import BASES, CARDS, GIB, TERA, Card, Plan, encoder_flops, plan
from train.meta_step import Case, Meter, count_step

SD3 = BASES["sd3-medium"]
TINY = dataclasses.replace(SD3, depth=2, hidden_size=128, context_size=64, pooled_size=64)
WIDTH, DEPTH, TEXT, TOKENS = 1536, 24, 333, 4096


def attention_flops(queries: int, keys: int) -> float:
    """Both products of one attention over all blocks: 2 operations per multiplication."""
    return 2 * 2 * queries * keys * WIDTH * DEPTH


def case(keep: float = 1.0, family: str = "psi_dit", num_blocks: int = 12) -> Case:
    return Case(SD3, family, 1024, keep, num_blocks)


def test_parameters_of_sd3_medium_and_its_control():
    step = count_step(case())
    assert step.frozen == pytest.approx(2.085e9, rel=1e-3)  # 2.028 B weights and the position table
    assert step.trained == pytest.approx(24 * 24 * WIDTH**2, rel=0.03)  # 12 + 12 D^2 per block, mostly
    assert step.state_bytes == step.frozen * 2 + step.trained * 20


@pytest.mark.parametrize(("keep", "tflops"), [(1.0, 26.2), (0.5, 19.1), (0.25, 16.0)])
def test_forward_of_psi_dit_is_what_the_arithmetic_says(keep, tflops):
    assert count_step(case(keep)).forward_flops / TERA == pytest.approx(tflops, rel=0.02)


@pytest.mark.parametrize(("num_blocks", "tflops"), [(12, 13.6), (24, 18.3)])
def test_forward_of_the_controlnet_is_what_the_arithmetic_says(num_blocks, tflops):
    assert count_step(case(family="controlnet", num_blocks=num_blocks)).forward_flops / TERA == pytest.approx(
        tflops, rel=0.02
    )


@pytest.mark.parametrize(("keep", "tflops"), [(1.0, 69.7), (0.25, 39.1)])
def test_step_of_psi_dit_is_the_arithmetic_and_what_it_leaves_out(keep, tflops):
    # The arithmetic takes the backward pass for once the forward pass in the frozen base and twice in the control.
    # Attention has no weights to be spared, so it costs twice in the base too, and a fused kernel computes the scores
    # once more: 2.5 times in all.
    left_out = 1.5 * attention_flops(TOKENS + TEXT, TOKENS + TEXT)
    left_out += 0.5 * attention_flops(round(TOKENS * (1 + keep)), round(TOKENS * (1 + keep)))
    step = count_step(case(keep))
    assert (step.flops - left_out) / TERA == pytest.approx(tflops, rel=0.03)
    assert step.flops / TERA > 1.1 * tflops


def test_dropping_three_quarters_of_the_lr_tokens_saves_almost_half():
    assert count_step(case()).flops / count_step(case(0.25)).flops == pytest.approx(1.72, abs=0.02)


def test_checkpointing_trades_one_more_forward_pass_for_memory():
    plain, again = count_step(case()), count_step(case(), recompute=True)
    assert again.flops == pytest.approx(plain.flops + plain.forward_flops, rel=0.01)
    assert again.activation_bytes < 0.3 * plain.activation_bytes
    # Kept between blocks: both streams and the text, in float32; and autocast's copies of the weights.
    kept = DEPTH * (2 * TOKENS + TEXT) * WIDTH * 4 + again.trained * 2
    assert kept < again.activation_bytes < 1.25 * kept


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


def test_checkpointing_and_sharding_make_room():
    by_name = {(card.name, card.gib): card for card in CARDS}
    consumer, a100 = by_name["RTX 4090", 24], by_name["A100", 40]
    assert plan(case(), consumer, 1, 0.4) is None
    assert plan(case(), consumer, 8, 0.4).micro_batch >= 1
    alone = plan(case(), a100, 1, 0.4)
    assert alone.recompute and alone.micro_batch >= 1
    assert plan(case(), a100, 1, 0.2).seconds == pytest.approx(2 * alone.seconds)


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
