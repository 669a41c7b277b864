"""How captions are worded for text encoders: no words of damage, subject first, no longer than they read."""

import pytest

from eam_core.captioning.caption import Caption, FocalArea
from eam_core.captioning.wording import CLIP_TOKENS, T5_TOKENS, estimate_tokens, fitted, without_damage


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The image is blurry and of low quality.", ""),
        ("The photo appears to be grainy. A cat sleeps.", "A cat sleeps."),
        ("A blurry, low-quality photo of a cat.", "A photo of a cat."),
        ("An out-of-focus cat on a slightly pixelated orange mat.", "A cat on an orange mat."),
        ("The image is blurry but shows a red bus.", "Shows a red bus."),
        ("A red bus drives by, with heavy motion blur.", "A red bus drives by."),
        ("There are JPEG artifacts around the edges.", ""),
        (
            "A noisy, out of focus and low resolution picture of a tree due to compression artifacts.",
            "A picture of a tree.",
        ),
        ("The photo is blurry and grainy.", ""),
        ("A grainy photo of a dog that lacks detail.", "A photo of a dog."),
        # What sounds alike and is no damage of the picture.
        ("A damaged wall beside a fuzzy blanket.", "A damaged wall beside a fuzzy blanket."),
        ("Ancient artifacts in a museum.", "Ancient artifacts in a museum."),
        ("Fine noise barriers line the road.", "Fine noise barriers line the road."),
        ("Noisy children play with grainy mustard.", "Noisy children play with grainy mustard."),
        ("Soft light falls through mist.", "Soft light falls through mist."),
    ],
)
def test_words_of_damage_go_and_the_rest_stays(text, expected):
    assert without_damage(text) == expected


def test_the_subject_comes_first():
    caption = Caption(
        "Trees stand in a row. A red fox sits on moss. It looks up. Snow lies around.", True, (FocalArea("red fox"),)
    )
    assert fitted(caption).caption == "A red fox sits on moss. It looks up. Trees stand in a row. Snow lies around."


def test_further_focal_areas_follow_while_clip_reads_them():
    tail = "A dog barks at the gate."
    caption = Caption(f"Hills rise behind. {tail} A fox sits.", True, (FocalArea("fox"), FocalArea("dog")))
    assert fitted(caption).caption == f"A fox sits. {tail} Hills rise behind."
    long_dog = "A dog " + "with a very long coat " * 20 + "barks."
    caption = Caption(f"Hills rise behind. {long_dog} A fox sits.", True, (FocalArea("fox"), FocalArea("dog")))
    assert estimate_tokens(f"A fox sits. {long_dog}")[0] > CLIP_TOKENS
    assert fitted(caption).caption == f"A fox sits. Hills rise behind. {long_dog}"


def test_whole_sentences_leave_at_the_end_until_t5_reads_all():
    sentences = [f"Thing number {i} stands on the wide green meadow." for i in range(60)]
    text = fitted(Caption(" ".join(sentences))).caption
    kept = text.split(". ")
    assert text == " ".join(sentences[: len(kept)])
    assert estimate_tokens(text)[1] <= T5_TOKENS < estimate_tokens(" ".join(sentences[: len(kept) + 1]))[1]
    assert 200 < estimate_tokens(fitted(Caption("tree " * 1000)).caption)[1] <= T5_TOKENS
    assert 0 < len(fitted(Caption("x" * 100_000)).caption) < 3000
    assert estimate_tokens(fitted(Caption("A b. " * 200_000)).caption)[1] <= T5_TOKENS
