"""Answers that decline, and answers that say that the text does not tell: by their wording, in English.

Only what an answer says in its own voice counts, not what it quotes: quotations, code and quoted lines are taken out first. A
phrase is looked for at the start of a sentence. A refusal and a does-not-tell open an answer; talk of being an AI counts in any
sentence.
"""

from __future__ import annotations

import re
import unicodedata

from megatron_longpo.generation.repetition import MAX_CHARACTERS

OPENING_SENTENCES = 2
"""A refusal comes within these; further on, "I cannot answer" is the text's."""

OTHER_WORDS = 20
"""An answer with as many words beside its does-not-tells tells something."""

VOCABULARY = {
    "ADVERB": "really|simply|just|only|also|actually|currently|personally|therefore|still|directly|specifically|explicitly"
    "|clearly|ever|even|fully|exactly|itself|unfortunately",
    "SORRY": "(?:i'm |i am )?(?:ADVERB |so |very |deeply |truly )?(?:sorry|afraid)|(?:i |must |do )*(?:apologi[sz]e|regret)"
    "|(?:my |sincere )*apologies|unfortunately|regrettably|thank you|thanks|(?:while|although|as much as) i",
    # Declining
    "UNABLE": "i (?:ADVERB )*(?:can't|cannot|can not|couldn't|could not|won't|will not|UNWILLING)"
    "|i(?:'m| am) (?:ADVERB )*(?:unable to|not (?:ADVERB )*(?:FREE to|comfortable))"
    "|it (?:is not possible for me|would not be (?:appropriate|right)(?: for me)?) to",
    "UNWILLING": "(?:must |have to )?decline to|refuse to|(?:won't|will not|wouldn't|would not) be able to"
    "|do(?:n't| not) feel comfortable|(?:do(?:n't| not) (?:have|possess)|lack) the (?:ability|capability|permission|means) to",
    "FREE": "able|allowed|permitted|designed|programmed|in a position",
    "ASKED": r"(?:answer|help|assist|respond|continue)(?:ing)?(?=\W*$|[,;:]| (?:you|with|that|this|your|the|any|such|it|to"
    r"|without|based|at|because|as)\b)|comply|complying|speculate|proceed|engage in|engage with|do (?:that|this|so)|comment on"
    r"|MAKE\w*\b.{0,40}?\bREPLY\b|(?:access|browse|open|view|see|read|find|locate|summari[sz]e|analy[sz]e) SOURCE",
    "MAKE": "provid|giv|offer|shar|writ|creat|generat|produc|complet|perform|fulfil|discuss|express",
    "REPLY": "answers?|responses?|information|summar(?:y|ies)|analys[ei]s|opinions?|advice|guidance|assistance|help|details"
    "|explanations?|content|quotes|questions?|requests?|prompts?|tasks?|topics?|instructions?|that|this",
    "SOURCE": r"(?:(?:the|this|that|your|any|specific|full|entire|actual|original|external) )+(?:\w+ )?(?:document|text|file|link"
    "|image|page|attachment|passage|excerpt|content|url|website|book|novel|article|internet|web)",
    # Talk of an assistant
    "PLEASE": "please|could you|can you|would you|kindly|if you (?:could|can|would)",
    "GIVE": "(?:provide|share|send|paste|upload|give|specify|clarify)(?: me)?(?: with)?",
    "WANTED": "text|passage|document|question|context|details|information|excerpt|article|content",
    "AN_AI": "(?:(?:an?|just|only|simply|merely|large|computer|virtual|digital|helpful) )*(?:ai|artificial intelligence"
    "|language model|machine learning model|chatbot|llm|virtual assistant|digital assistant|computer program)",
    "CLAUSE": r".{0,120}?(?:[,;:]|\bbut|\band|\bsince|\bbecause)",
    # Not telling
    "GIVEN": "given|above|provided|following|preceding|available|source|short|same|whole|entire|supplied",
    "TEXT": "(?:(?:the|this|that|your|these|GIVEN) )+(?:text|passage|excerpt|document|context|chapter|article|story|section"
    "|author|narrator|paragraph|book|novel|content|information|material|source|extract|snippet)s?(?: itself| here|,? as)?"
    "(?: (?:that )?(?:(?:is|was|you|have) )*(?:provided|given|gave|shared|above))?",
    "GOING_BY": "based on|according to|from|in|within|given|judging by",
    "TELL": "say|state|mention|specify|tell|explain|indicate|reveal|disclose|clarify|describe|discuss|address|identify|name"
    r"|answer|elaborate|make clear|make it clear|go into|(?:give|offer|provide|contain|include|have) .{0,40}?\bMATTER",
    "MATTER": "information|details?|answers?|explanations?|reasons?|mention|indication|account|descriptions?|context|examples?"
    "|data|clues?|references?",
    "TOLD": "mentioned|stated|specified|given|provided|explained|indicated|revealed|described|discussed|addressed|found|known"
    "|included|named|identified|disclosed|available|answered|determined|clear|told|said",
    "ASKING": "what|who|why|how|when|where|which|whether|if",
    "TOO_LITTLE": "no|not any|not enough|insufficient",
}
"""Words of the patterns. Texts are case folded before they are compared, so a name in capitals stands for its alternatives."""

DECLINES = (
    "UNABLE (?:ADVERB )*ASKED",
    r"SORRY\b.{0,120}?\bUNABLE(?:\W*$| (?:ADVERB )*ASKED)",
    ".{0,200}?[,;:] (?:but|however,?) UNABLE (?:ADVERB )*ASKED",
    r"(?:SORRY\b.{0,80}?)?\bi (?:do(?:n't| not) (?:ADVERB )*have|lack) (?:direct |any )*access to SOURCE",
    r"(?:SORRY\b.{0,120}?)?\b(?:PLEASE )+GIVE (?:the|your|more|an?|additional|some|me)\b.{0,60}?\bWANTED\b",
    r"(?:SORRY\b.{0,80}?)?\bi (?:would )?need (?:some |a bit )?(?:more|additional) WANTED\b",
    "(?:hello|hi|sure|certainly|of course)?[,.! ]*(?:how|what) (?:can|may) i (?:help|assist|do for) ",
    r"(?:hello|hi|sure|certainly|of course)?[,.! ]*i'm (?:ready|here|happy) to (?:help|assist)\b",
)
SPEAKS_AS_AI = (
    r"(?:CLAUSE )?as AN_AI\b.{0,80}?\b(?:i|my|me)\b",
    r"(?:CLAUSE )?i(?: am|'m) (?:ADVERB )*AN_AI\b"
    "(?! (?:researcher|engineer|expert|scientist|student|company|programmer|developer))",
    r"(?:SORRY\b.{0,80}?)?\bi do(?:n't| not) (?:have|possess|hold) (?:(?:any|real|own|human) )*"
    r"(?:personal|real-time|physical|subjective)\b",
    r"i was (?:trained|programmed|designed|created) (?:on (?:an?|vast|large)|to (?:help|assist|provide|answer|be helpful))\b",
    r".{0,200}?\bmy (?:last |latest |most recent )?(?:training data|training cut-?off|knowledge cut-?off|knowledge update)\b",
)
NOT_TOLD = (
    r"TEXT (?:do(?:es)? not|do(?:es)?n't|did not|didn't|never|fails? to) (?:ADVERB )*TELL\b",
    r"TEXT (?:(?:says?|tells us|states|mentions) nothing|(?:is|are) silent"
    r"|(?:gives?|offers?|provides?|contains?|makes?|includes?|has|have) no (?:\w+ ){0,2}MATTER)\b",
    r"nothing (?:in|within) TEXT\b",
    r"(?:\S+ ){1,8}(?:is|was|are|were) not (?:ADVERB )*(?:TOLD (?:in|by|from|within) TEXT|(?:stated|mentioned|specified)\W*$)",
    "(?:the |an )?answer (?:\\S+ ){0,8}is not in TEXT",
    r"(?:(?:the|this|that|it|an?|any|answer|question|information|name|reason|detail|date) )*"
    r"(?:(?:is|was|are|has|have|can|could) ?)?(?:not|never|nowhere)(?: be| been)? (?:ADVERB )*TOLD"
    r"(?=\W*$| (?:(?:in|by|from|within) TEXT|here|ASKING)\b)",
    r"(?:it is|it's|it would be) (?:\w+ )?(?:impossible|not possible|unclear|difficult|not clear) "
    r"(?:to (?:determine|say|tell|know|answer|provide|give|infer)|from|ASKING)\b",
    r"(?:there(?:'s| is| are| was) TOO_LITTLE|there (?:is|are)n't (?:any|enough)) (?:\w+ )?(?:(?:mention|information|answer)s?\b"
    r"|(?:\w+ ){1,8}(?:in|from|within) TEXT)",
    r"TOO_LITTLE (?:\w+ )?(?:information|answer|mention|details?|context)(?: is| was| are| were)?"
    r"(?: (?:TOLD|to|about|in|of|on)\b|\W*$)",
    r"i(?:'m| am) not (?:sure|certain)\b",
    r"i (?:ADVERB )*(?:do(?:n't| not)|cannot|can't|couldn't|could not) (?:\w+ )?(?:know|find|see|tell|determine|locate"
    r"|have (?:enough|sufficient|any|the|that|this) (?:\w+ )?(?:information|context|details))\b",
    r"(?:unknown|n/a|not applicable|no idea|unclear|none given|unanswerable)\W*$",
)
ABOUT_ABSENCE = (
    r"(?:\bnot|n't|\bnever|\bnowhere) (?:\w+ )?(?:TELL|TOLD)\b",
    r"\b(?:omits?|omitted|leaves? out|left out|avoids?|silent|missing|unclear|unknown)\b",
)
BEFORE_NOT_TOLD = "(?:SORRY,? (?:but |that )?)?(?:GOING_BY (?:only )?TEXT(?: alone)?,? )?(?:SORRY,? )?"

_QUOTED = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|^[ \t]*>[^\n]*$"  # code, quoted lines
    r'|"[^"\n]*"|“[^“”]*”|„[^„“”]*[“”]|«[^«»]*»'
    r"|(?:(?<!\w)'|\u2018)(?:[^'\u2018\n]|'(?=\w)){1,200}'(?!\w)",  # the apostrophe of "don't" neither opens nor closes
    re.DOTALL | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_LABEL = re.compile(r"(?:[\W_]|(?:answer|response|reply|assistant|a)\s*:)*")
"""Bullets, emphasis and labels in front of a sentence."""
_GOES_ON = re.compile(r"\b(?:but|however|though|although|instead|rather|because|since|yet|which|only|until|except|unless)\b|[;:]")
"""A sentence that goes on like this has more to say than that something is missing."""
_TURNS = re.compile(r"(?:however|but|instead|still|nevertheless|nonetheless|rather|that said|yet|it does|even so)\b")


def compile_patterns(patterns: tuple[str, ...], before: str = "") -> re.Pattern[str]:
    """Compile patterns of which any may follow ``before``, with the words of `VOCABULARY` spelt out."""

    def spell_out(pattern: str) -> str:
        return re.sub(r"[A-Z_]{4,}", lambda name: f"(?:{spell_out(VOCABULARY[name[0]])})", pattern)

    return re.compile(spell_out(before) + "(?:" + "|".join(map(spell_out, patterns)) + ")")


_DECLINES = compile_patterns(DECLINES)
_SPEAKS_AS_AI = compile_patterns(SPEAKS_AS_AI)
_NOT_TOLD = compile_patterns(NOT_TOLD, before=BEFORE_NOT_TOLD)
_ABOUT_ABSENCE = compile_patterns(ABOUT_ABSENCE)


def is_refusal(text: str) -> bool:
    """Tell whether an answer declines to answer, asks for the text that it was given, or talks about being an AI."""
    sentences = sentences_of(text)
    return any(map(_DECLINES.match, sentences[:OPENING_SENTENCES])) or any(map(_SPEAKS_AS_AI.match, sentences))


def is_untold(text: str, question: str = "") -> bool:
    """Tell whether an answer says that the text does not tell, and little else.

    "The text does not say why, but ..." goes on to an answer, and so does one that turns ("However, ...") or has `OTHER_WORDS`
    words more. To a question about what is missing, "the text does not say" may be the answer.
    """
    first, *rest = sentences_of(text) or [""]
    untold = _NOT_TOLD.match(first)
    if not untold or _GOES_ON.search(first, untold.end()) or _ABOUT_ABSENCE.search(_plain(question)):
        return False
    others = [sentence for sentence in rest if not _NOT_TOLD.match(sentence)]
    return not any(map(_TURNS.match, others)) and sum(len(sentence.split()) for sentence in others) < OTHER_WORDS


def sentences_of(text: str) -> list[str]:
    """Cut what an answer says in its own voice into plain sentences."""
    unquoted = _QUOTED.sub(' "" ', _plain(text[:MAX_CHARACTERS]))
    sentences = (" ".join(_LABEL.sub("", part, count=1).split()) for part in _SENTENCE_END.split(unquoted))
    return [sentence for sentence in sentences if sentence]


def _plain(text: str) -> str:
    """Fold case and write every apostrophe the same way."""
    return unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
