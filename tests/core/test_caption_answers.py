"""What models answer, and what is read out of it: JSON whole and broken, plain text, refusals."""

import json

import pytest

from eam_core.captioning.caption import Caption, FocalArea, read_answer
from eam_core.captioning.messages import CaptionError

GOOD = json.dumps(
    {"focused": True, "focal_areas": [{"name": "red fox", "box": [100, 200, 600, 900]}], "caption": "A red fox sits."}
)


def test_an_answer_is_read_with_its_focal_areas():
    caption = read_answer(GOOD, "sa")
    assert caption == Caption("A red fox sits.", True, (FocalArea("red fox", (0.1, 0.2, 0.6, 0.9)),))
    assert Caption.from_json(json.loads(json.dumps(caption.as_json()))) == caption


@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "```json\n{}\n```",
        "<think>It has {{a}} fox.</think>{}",
        "Here it is: {}. Anything else?",
        "It has {{a}} fox.</think>{}",
    ],
)
def test_talk_around_the_json_is_left_out(around):
    assert read_answer(around.format(GOOD), "sa") == read_answer(GOOD, "sa")


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-50, 0, 2000, 500], (0.0, 0.0, 1.0, 0.5)),
        ([600, 0, 100, 500], None),
        ([0, 0, 500], None),
        (["0", 0, 1, 1], None),
        ("everywhere", None),
        (None, None),
        ([float("nan"), 0, 500, 500], None),
    ],
)
def test_boxes_are_fractions_inside_the_picture_or_none(box, expected):
    text = json.dumps({"focused": True, "focal_areas": [{"name": "fox", "box": box}], "caption": "A fox."})
    assert read_answer(text, "sa").focal_areas == (FocalArea("fox", expected),)


def test_an_unfocused_picture_has_no_focal_areas():
    text = json.dumps({"focused": False, "focal_areas": [{"name": "hill"}], "caption": "Hills."})
    assert read_answer(text, "sa") == Caption("Hills.")


AREAS = '"focal_areas": [{"name": "fox", "box": [0, 0, 500, 1000]}], '


@pytest.mark.parametrize(
    ("answer", "areas"),
    [
        ('{"focused": true, %s"caption": "A red\nfox sits."', 1),
        ('{"focused": true, %s"caption": "A red fox sits.",}', 1),
        ('{"focused": true, %s"caption": "A red fox sits."', 1),
        ('{"focused": true, %s"caption": "A red fox sits. It looks to the', 0),
        ('{"focused": true, "caption": "A red fox sits.", "focal_areas": [{"na', 0),
    ],
)
def test_json_with_small_faults_or_that_breaks_off_still_gives_its_caption(answer, areas):
    caption = read_answer(answer % AREAS if "%s" in answer else answer, "sa")
    assert caption.caption == "A red fox sits."
    assert len(caption.focal_areas) == areas


def test_quotes_that_are_not_escaped_stay_in_the_caption():
    answer = '{"focused": true, "caption": "A sign reads "STOP" in red."}'
    assert read_answer(answer, "sa").caption == 'A sign reads "STOP" in red.'


def test_text_that_breaks_off_ends_with_its_last_whole_sentence():
    assert read_answer("A fox sits. It is 1.5 m long. Behind it", "da").caption == "A fox sits. It is 1.5 m long."
    assert read_answer("A red fox in the", "da").caption == "A red fox in the"


def test_braces_in_a_plain_caption_are_no_json():
    text = 'A sign reading "{hello}" stands.'
    assert read_answer(text, "da").caption == text
    assert read_answer('{"caption": "A fox."}', "da").caption == "A fox."


def test_what_no_file_takes_is_left_out():
    assert read_answer("A fox\ud83d \x1b[31msits\x00.", "da").caption == "A fox [31msits."
    text = json.dumps({"focused": True, "focal_areas": [{"name": "fox", "box": [0, 0, 10**400, 500]}], "caption": "A."})
    assert read_answer(text, "sa").focal_areas[0].box == (0.0, 0.0, 1.0, 0.5)


def test_plain_text_is_a_caption_without_focus():
    assert read_answer("Hills under\n a blue sky.", "da") == Caption("Hills under a blue sky.")
    assert read_answer("Hills under a blue sky.", "sa") == Caption("Hills under a blue sky.")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "got an empty answer"),
        ("  ```json\n``` ", "got an empty answer"),
        ("<think>What is it", "got an empty answer"),
        ("I'm sorry, but I can't help with that.", "got a refusal"),
        ("I cannot describe people.", "got a refusal"),
        ("I'm unable to describe this.", "got a refusal"),
        ("I’m not able to see it.", "got a refusal"),
        ("I apologize, but no.", "got a refusal"),
        ("Apologies, but I cannot.", "got a refusal"),
        ("I don't see any image attached.", "got a refusal"),
        ("It seems no image was provided.", "got a refusal"),
        ("As a language model, I cannot.", "got a refusal"),
        ("Unable to process the image.", "got a refusal"),
        ('{"caption": "I am unable to see pictures."}', "got a refusal"),
        ('{"focused": true}', "expected JSON with a caption"),
        ('{"caption": ["a"]}', "expected JSON with a caption"),
        ('{"caption": ', "expected JSON with a caption"),
        ("{" * 5000, "expected JSON with a caption"),
    ],
)
def test_what_is_no_caption_is_refused_in_one_sentence(answer, message):
    with pytest.raises(CaptionError, match=message) as refusal:
        read_answer(answer, "sa")
    assert len(str(refusal.value)) < 250
