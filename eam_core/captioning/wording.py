"""Make captions fit for text encoders: no words of damage, the subject first, no longer than they read."""

import re
from collections.abc import Callable
from dataclasses import replace

from .caption import Caption

CLIP_TOKENS, T5_TOKENS = 77, 256  # what SD3's encoders read, start and end tokens included

_LONGEST = 4000  # characters, far more than T5 reads

# Words that damage shares with things ("damaged wall", "noisy street", "museum artifacts") count beside words for
# pictures, or where no thing follows them.
_PICTURE = (
    r"(?:image|picture|photo|photograph|photography|shot|frame|scan|snapshot|quality|appearance|look|background)s?\b"
)
_GRADE = r"(?:(?:very|slightly|quite|rather|somewhat|extremely|highly|heavily|severely|a bit|a little)[ ]+)?"
_ADJECTIVE = _GRADE + (
    r"(?:blurr?(?:y|ed|ier|iest)|out[ -]of[ -]focus|unsharp|pixell?ated|degraded|over-?compressed|"
    r"jpe?g(?! (?:compression )?(?:art|noise))|lowres|"
    r"(?:low|poor|bad)[ -](?:quality|resolution|res|definition|fidelity)|"
    rf"(?:grainy|noisy)(?= {_PICTURE}|[.,;!?]|$| (?:and|or|but)\b)|"
    rf"(?:hazy|fuzzy|distorted|damaged|compressed|overexposed|underexposed)(?= {_PICTURE}))"
)
_NOUN = (
    r"(?:motion )?blur(?:riness)?|pixell?ation|graininess|film grain|"
    r"(?:image|visual|digital|sensor|colou?r|chroma|visible|heavy|strong|some|much|compression) noise|"
    r"(?:compression|jpe?g|visual|digital|image|block(?:y|ing)|ringing) (?:artifacts?|artefacts?)|image compression|"
    r"degradation|(?:low|poor|bad) (?:quality|resolution)|"
    r"(?:lack(?:s|ing)?|loss) (?:of )?(?:fine )?(?:details?|sharpness|focus|clarity)"
)
_DAMAGE = re.compile(rf"\b(?:{_ADJECTIVE}|{_NOUN})\b", re.IGNORECASE)
# Before the word it belongs to: "a blurry, low-quality photo".
_ATTRIBUTE = re.compile(
    rf"\b{_ADJECTIVE}(?:(?:,? and|,)? {_ADJECTIVE})*,? (?=(?!(?:and|or|but|due|because|with|in|at|on|to|from|by)\b)\w)",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"(,? (?:but|although|though|while|with|that|which|due to|because of|and)\b|[,;])", re.IGNORECASE)
_FRAME = re.compile(
    r"\b(?:the|this|an?|overall|image|picture|photo(?:graph)?|shot|is|are|it|has|looks?|appears?|seems?|of|and|to|be)\b|\W",
    re.IGNORECASE,
)
_REFERENCE = re.compile(r"(?:it|its|they|their|he|she|his|her|this|these|the latter)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[^\W_a-z])")

# Counts the tokens of a text for CLIP and for T5.
CountTokens = Callable[[str], tuple[int, int]]


def estimate_tokens(text: str) -> tuple[int, int]:
    """Guess how many tokens CLIP and T5 make of a text, rather too many than too few; for use without tokenizers."""
    words = re.findall(r"\w+|[^\w\s]", text)
    pieces = sum(1 + (len(word) - 1) // 7 for word in words)
    return pieces + 2, round(1.15 * pieces) + 1


def without_damage(text: str) -> str:
    """Leave out what says how badly a picture shows its content ("blurry", "low quality", "JPEG artifacts").

    A word before its noun goes alone; otherwise its clause goes, or the whole sentence where nothing else is in it.
    """
    return " ".join(kept for sentence in _sentences(text.strip()) if (kept := _clean_sentence(sentence)))


def fitted(caption: Caption, count: CountTokens = estimate_tokens) -> Caption:
    """Clean a caption, put its subject first, and cut it to what SD3's text encoders read.

    CLIP reads the first 77 tokens, T5 256. What is said of the focal areas moves to the front, in their order, as long
    as CLIP reads it there (the first area's always); whole sentences leave at the end until T5 reads all.

    Args:
        caption: as a model gave it.
        count: tokens of a text for CLIP and T5.
    """
    passages = _passages(without_damage(caption.caption[:_LONGEST]))
    front: list[str] = []
    for area in caption.focal_areas:
        about = next((each for each in passages if _names(each, area.name)), None)
        named = any(_names(each, area.name) for each in front)
        if about and not named and (not front or count(" ".join([*front, about]))[0] <= CLIP_TOKENS):
            passages.remove(about)
            front.append(about)
    sentences = _sentences(" ".join([*front, *passages]))
    while len(sentences) > 1 and count(" ".join(sentences))[1] > T5_TOKENS:
        sentences.pop()
    text = " ".join(sentences)
    while count(text)[1] > T5_TOKENS:  # one endless sentence
        shorter = text[: len(text) * 9 // 10]
        text = shorter.rsplit(" ", 1)[0] if " " in shorter else shorter
    return replace(caption, caption=text)


def _sentences(text: str) -> list[str]:
    return [sentence for sentence in _SENTENCE.split(text) if sentence]


def _passages(text: str) -> list[str]:
    """Split a text before every sentence that can be understood on its own."""
    passages: list[str] = []
    for sentence in _sentences(text):
        if passages and _REFERENCE.match(sentence):
            passages[-1] += f" {sentence}"
        else:
            passages.append(sentence)
    return passages


def _names(text: str, area: str) -> bool:
    """Tell whether a text speaks of a focal area, by its name's last word: a "tabby cat" becomes "the cat"."""
    words = re.findall(r"\w+", area)
    return bool(words and re.search(rf"\b{re.escape(words[-1])}", text, re.IGNORECASE))


def _clean_sentence(sentence: str) -> str:
    if not _DAMAGE.search(sentence):
        return sentence
    end = sentence[-1] if sentence[-1] in ".!?" else ""
    text = _ATTRIBUTE.sub("", sentence.removesuffix(end))
    if _DAMAGE.search(text):
        pieces = _CLAUSE.split(text)  # clause, separator, clause, ...
        clauses = [("", pieces[0]), *zip(pieces[1::2], pieces[2::2])]
        text = "".join(mark + clause for mark, clause in clauses if not _DAMAGE.search(clause))
    text = _CLAUSE.sub("", text, count=1) if _CLAUSE.match(text) else text
    text = _with_articles(" ".join(text.split()).strip(" ,;"))
    return text[:1].upper() + text[1:] + end if _says_something(text) else ""


def _says_something(text: str) -> bool:
    """Tell whether more is left of a sentence than that there is a picture."""
    return bool(_FRAME.sub("", text))


def _with_articles(text: str) -> str:
    """Mend "an" and "a" where the word behind them has changed."""
    text = re.sub(r"\b([Aa])n (?=[^aeiouAEIOU\W])", r"\1 ", text)
    return re.sub(r"\b([Aa]) (?=[aeioAEIO])", r"\1n ", text)
