"""From a picture to a caption: what is asked, how often, and what is kept; the command that prints it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eam_core import cli
from eam_core.captioning.cache import CaptionCache, picture_hash
from eam_core.captioning.caption import Caption, read_answer
from eam_core.captioning.captioner import CaptionConfig, SubjectCaptioner, tile_boxes
from eam_core.captioning.messages import CaptionError, GenerateConfig
from eam_core.captioning.prompt import LONGEST_SIDE, load_prompt
from eam_core.captioning.wording import fitted, without_damage

PICTURE = torch.randint(0, 256, (3, 24, 40), generator=torch.Generator().manual_seed(0)) / 255
GOOD = json.dumps(
    {"focused": True, "focal_areas": [{"name": "red fox", "box": [100, 200, 600, 900]}], "caption": "A red fox sits."}
)


class Scripted:
    """Answer from a list, and remember what was asked."""

    identity = "scripted"

    def __init__(self, *answers):
        self.answers, self.asked, self.seeds = list(answers), [], []

    def prepare(self, on_token=None):
        pass

    def generate(self, conversations, config, on_token=None):
        self.asked += conversations
        self.seeds.append(config.seed)
        return [self.answers.pop(0) for _ in conversations]


# The prompt


def test_the_prompt_shows_three_focused_and_three_unfocused_pictures_with_their_answers():
    conversation = load_prompt().conversation(PICTURE, "sa")
    roles = [message.role for message in conversation]
    assert roles == ["system", *["user", "assistant"] * 6, "user"]
    answers = [read_answer(message.parts[0], "sa") for message in conversation if message.role == "assistant"]
    assert sorted(answer.focused for answer in answers) == [False] * 3 + [True] * 3
    for answer in answers:
        assert bool(answer.focal_areas) == answer.focused
        assert all(area.box for area in answer.focal_areas)
        # Ideal answers keep the prompt's own rules.
        assert without_damage(answer.caption) == answer.caption
        assert fitted(answer) == answer
    assert conversation[-1].parts[0] is PICTURE


def test_detail_aware_prompts_have_no_examples():
    roles = [message.role for message in load_prompt().conversation(PICTURE, "da")]
    assert roles == ["system", "user"]


def test_the_users_instruction_and_the_whole_photo_reach_the_prompt():
    conversation = load_prompt().conversation(PICTURE, "sa", extra="Name the plants.", whole="A garden {with} braces.")
    assert conversation[0].parts[0].endswith("Also: Name the plants.")
    assert "The whole photo: A garden {with} braces." in conversation[-1].parts[1]


def test_large_pictures_are_reduced_before_a_model_sees_them():
    large = load_prompt().conversation(torch.rand(3, 1000, 3 * LONGEST_SIDE), "da")[-1].parts[0]
    assert large.shape == (3, 333, LONGEST_SIDE)
    assert large.min() >= 0 and large.max() <= 1


# Captioner and cache


def test_the_same_question_is_asked_once(tmp_path):
    model = Scripted(GOOD, "Another.", "Third.", "Fourth.", "Fifth.")
    captioner = SubjectCaptioner(model, CaptionCache(tmp_path / "cache"))
    first = captioner.caption(PICTURE, CaptionConfig())
    assert captioner.caption(PICTURE.clone(), CaptionConfig()) == first and len(model.asked) == 1
    for config in (
        CaptionConfig(mode="da"),
        CaptionConfig(extra="Name the plants."),
        CaptionConfig(generate=GenerateConfig(seed=1)),
    ):
        assert captioner.caption(PICTURE, config) != first
    assert captioner.caption(PICTURE * 0.9, CaptionConfig()) != first
    model.identity = "another"
    model.answers = ["Sixth."]
    assert captioner.caption(PICTURE, CaptionConfig()).caption == "Sixth."


def test_a_damaged_cache_file_is_asked_for_again(tmp_path):
    captioner = SubjectCaptioner(Scripted("A fox.", "A dog."), CaptionCache(tmp_path))
    captioner.caption(PICTURE, CaptionConfig())
    (file,) = tmp_path.rglob("*.json")
    file.write_text(file.read_text()[:-20])
    assert captioner.caption(PICTURE, CaptionConfig()).caption == "A dog."
    assert not list(tmp_path.rglob("*.part"))


def test_an_unusable_answer_is_asked_for_once_more_and_never_kept(tmp_path):
    model = Scripted("", GOOD)
    captioner = SubjectCaptioner(model, CaptionCache(tmp_path))
    assert captioner.caption(PICTURE, CaptionConfig()).focused
    assert len(set(model.seeds)) == 2
    model.answers = ["I'm sorry, no.", ""]
    with pytest.raises(CaptionError, match="empty answer"):
        captioner.caption(PICTURE * 0.5, CaptionConfig())
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_one_bad_answer_leaves_the_others_alone():
    model = Scripted("A fox.", CaptionError("no"), "The image is blurry.", "A cat.", CaptionError("never"), "")
    answers = SubjectCaptioner(model).caption_many([PICTURE * s for s in (1, 0.9, 0.8, 0.7)], CaptionConfig(mode="da"))
    assert [getattr(answer, "caption", None) for answer in answers] == ["A fox.", None, None, "A cat."]
    assert str(answers[1]) == "never"
    assert len(model.asked) == 6


def test_tiles_are_captioned_with_the_whole_as_a_hint_and_fall_back_to_it():
    model = Scripted("A paw.", "", "", "Moss.")
    boxes = tile_boxes((24, 40), 4, 64, 16)
    seen = []
    whole = Caption("A red fox sits.")
    captioner = SubjectCaptioner(model)
    tiles = captioner.caption_tiles(PICTURE, boxes[:3], whole, CaptionConfig(), lambda *done: seen.append(done))
    assert [tile.caption.caption for tile in tiles] == ["A paw.", "A red fox sits.", "Moss."] and seen[-1] == (3, 3)
    top, left, height, width = boxes[1]
    asked = model.asked[1][-1].parts
    assert torch.equal(asked[0], PICTURE[:, top : top + height, left : left + width])
    assert "A red fox sits." in asked[1]
    assert tiles[1].error and not tiles[0].error
    assert tiles[1].box == (left / 40, top / 24, (left + width) / 40, (top + height) / 24)


def test_focal_areas_of_tiles_lie_in_the_whole_picture():
    answer = '{"focused": true, "focal_areas": [{"name": "paw", "box": [500, 0, 1000, 500]}], "caption": "A paw."}'
    (tile,) = SubjectCaptioner(Scripted(answer)).caption_tiles(
        PICTURE, [(12, 20, 12, 20)], Caption(""), CaptionConfig()
    )
    assert tile.caption.focal_areas[0].box == pytest.approx((0.75, 0.5, 1.0, 0.75))


def test_a_model_that_captions_no_tile_is_said_to():
    captioner = SubjectCaptioner(Scripted("", "", "", ""))
    with pytest.raises(CaptionError, match="empty answer"):
        captioner.caption_tiles(PICTURE, [(0, 0, 24, 24), (0, 16, 24, 24)], Caption("A fox."), CaptionConfig())


def test_a_cache_that_cannot_be_written_costs_no_caption(tmp_path):
    (tmp_path / "file").write_text("")
    captioner = SubjectCaptioner(Scripted("A fox."), CaptionCache(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not keep a caption"):
        assert captioner.caption(PICTURE, CaptionConfig()).caption == "A fox."


def test_tiles_cover_the_picture():
    covered = torch.zeros(50, 70)
    for top, left, height, width in tile_boxes((50, 70), 4, 96, 32):
        assert (height, width) == (24, 24)
        covered[top : top + height, left : left + width] += 1
    assert covered.min() >= 1
    with pytest.raises(ValueError, match="tile of at least"):
        tile_boxes((50, 70), 4, 16, 0)


def test_the_hash_tells_pictures_apart_and_not_copies():
    assert picture_hash(PICTURE) == picture_hash(PICTURE.clone() + 1e-5)
    assert len({picture_hash(p) for p in (PICTURE, PICTURE.flip(-1), PICTURE.reshape(3, 40, 24))}) == 3


@pytest.mark.parametrize("wrong", [{"max_tokens": 3}, {"temperature": -1.0}, {"temperature": float("nan")}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        GenerateConfig(**wrong)


# The command line


@pytest.fixture
def photo():
    return Path(cli.__file__).parent / "assets" / "sample_lr.png"


@pytest.fixture
def answering(monkeypatch):
    """Put a scripted model in the place of any that the command line opens."""
    from eam_core.captioning import source

    model = Scripted(GOOD, *["A leaf."] * 40)
    monkeypatch.setattr(source, "open_model", lambda *args, **options: model)
    return model


def test_the_command_prints_one_json_object(photo, answering, capsys, tmp_path):
    command = ["caption", str(photo), "--model", "anything", "--tiles", "--tile", "256", "--overlap", "64"]
    command += ["--cache", str(tmp_path)]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    fields = json.loads(printed)
    assert printed.count("\n") == 1
    assert list(fields) == ["caption", "focused", "focal_areas", "tiles"]
    assert fields["caption"] == "A red fox sits." and fields["focused"] is True
    assert fields["focal_areas"] == [{"name": "red fox", "box": [0.1, 0.2, 0.6, 0.9]}]
    assert not any("error" in tile for tile in fields["tiles"])
    assert [tile["caption"] for tile in fields["tiles"]] == ["A leaf."] * 9
    assert fields["tiles"][0]["box"] == [0.0, 0.0, 0.4219, 0.4219]
    assert cli.main(command) == 0 and capsys.readouterr().out == printed
    assert len(answering.asked) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected --model DIR or --endpoint URL, got neither"),
        (["--endpoint", "localhost:8000"], "expected --endpoint to begin with http:// or https://"),
        (["--model", "x", "--max-tokens", "1"], "expected max_tokens of at least 16"),
        (["--model", "x", "--tiles", "--tile", "8"], "expected a tile of at least"),
        (["--model", "", "--mode", "da"], "expected --model DIR or --endpoint URL"),
        (["--model", "x", "--tiles", "--scale", "nan"], "expected a scale from 1 to 8"),
        (["--model", "x", "--tiles", "--tile", "64", "--overlap", "64"], "an overlap below it, got 64 and 64"),
        (["--model", "x", "--text-encoders", "/nowhere"], "expected an SD3 pipeline's folder with tokenizer"),
        (["--model", "x", "--tiles", "--scale", "0"], "expected a scale from 1 to 8"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_mistakes_get_one_sentence(photo, options, message, capsys):
    assert cli.main(["caption", str(photo), *options, "--no-cache"]) == 2
    out, err = capsys.readouterr()
    assert not out and message in err and err.count("\n") == 1


def test_help_of_the_command_needs_no_torch():
    code = "import sys; from eam_core import cli\ntry: cli.main(['caption', '--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--endpoint" in done.stdout, done.stderr
