r"""The caption tokenizer of the COCO evaluation in plain Python: Penn Treebank words, lower case, no punctuation.

The official scorers pipe captions through the Stanford PTB tokenizer (3.4.1, ``-preserveLines -lowerCase``, a Java
program) and drop a list of punctuation tokens. ``ptb_tokenize`` gives the same words. Its rules follow those of that
program's lexer and were settled by comparing outputs: at every place each rule below is tried, the longest match wins
(what a rule has to *see* after its token counts as length), and of equal ones the first.

    "A man's riding a horse, in the (park)."   ->   a man 's riding a horse in the -lrb- park -rrb-

No text is known of which the two differ (``benchmarks/tokenizer.py`` looks for one), except that they disagree on about
a thousand of the characters of Unicode's first plane, of rare scripts mostly.

One difference is wanted: the Java program sees all captions as one stream, so that a final single letter ("vitamin c.")
loses its period if the *next* caption begins with a word like "The". Here a caption's tokens depend on nothing else.
"""

from __future__ import annotations

import re

# Dropped from the output (tested after lower-casing, which is why "-lrb-" stays though "-LRB-" is listed officially).
_PUNCTUATION = frozenset(["", "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_SPACE = r"[ \t\u00a0\u2000-\u200a\u3000]"
# Letters of the Basic Multilingual Plane with combining marks; \w also holds digits, fractions and superscripts.
_LETTER = (
    r"(?:[^\W\d_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070\u2074-\u2079\u2080-\u2089\u2150-\u2182\u2185-\u218b\u2460-\u24ff\u2776-\u2793"
    r"\u3007\u3021-\u3029\u3038-\u303a\U00010000-\U0010ffff]"
    r"|[\u00ad\u02c2-\u02c5\u02d2-\u02df\u02e5-\u02ff\u0300-\u036f\u0375\u0384\u0385\u03f6\u0483-\u0487])"
)
_ALNUM = rf"(?:{_LETTER}|\d)"
_WORD = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"  # "wow!Great" is one word
_APOS = r"(?:['\u0092\u2019]|&apos;)"
_QUOTE = r"(?:['\u0092\u2019`\u2018\u201b]|&apos;)"
_PART = rf"(?:[dDoOlL]{_QUOTE}{_ALNUM})?{_ALNUM}+"
_THING = rf"{_PART}(?:[-_\u058a\u2010\u2011]{_PART})*"  # "mother-in-law", "O'Neil-Smith", "foo_bar"
_CLITIC = rf"{_APOS}(?:[msdMSD]|(?i:re|ve|ll))"
_NUMBER = r"(?:\d+(?:[.:,]\d+)*|(?:[.:,]\d+)+)"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+"  # "U.S", "p.m", "e.g"
_LABEL = r"[^ \t\n\"<>|.!?(){},]+"  # of an address that begins with "www."
_MAIL = r"[^ \t\n\u00a0\"<>|(){}.]"
# What may stand before ".com": lower case, no digits and no hyphens (other names are taken apart like any words).
_HOST = r"(?:[a-z#%&*+~\u0080-\U0010ffff]+\.)+(?:com|net|org|edu)"
_EXTENSION = (
    "(?:bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt"
    "|wav|wma|wmv|x|xml|zip)"
)

# Abbreviations that keep their period. A sentence may end after the first kind, hardly after a title.
_ENDING = (
    r"(?:(?i:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri"
    r"|ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo"
    r"|assn|bancorp|bhd|bldg|blvd|bros|cos?|corp|inc|intl|ltd|plc|pp?t[ey]s?|rt|sys|univ"
    r"|al|esq|est|etc|ext|jr|rd|seq|sq|sr|tel|ed\.d|ph\.d)"
    r"|(?:A(?i:rk|z)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash)))"
)
_TITLE = (
    "(?i:adj|adm|adv|alex|assoc|asst|attys?|ave|brig|capt|cf|cie|col|co?mdr|cpl|dept|det|drs?|elec|ens|ft|gen|govs?|hon"
    "|insp|invt|jos|lieut|lt|m[ft]g|maj|messrs|mlle|mme|mrs?|ms|msgr|mt|natl|pfc|ph|pres|profs?|pvt|reps?|rev|sens?|sfc"
    "|sgt|spc|ste?|supts?|treas|vs|wm)"
)
# Words which, after a single letter and its period, show that the period ended a sentence.
_STARTER = (
    "(?=[A-Z])(?i:A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Mr\\.|Ms\\."
    "|Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You)"
)

_NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"
_SGML = rf"(?:</?{_NAME}(?: +{_NAME}(?: *= *(?:'[^']*'|\"[^\"]*\"|[A-Za-z0-9_]+))?)* */?>|<[!?][A-Za-z-][^>]*>)"
_TEAM = "[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"  # "AT&T"
_CHAIN = rf"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:{_INITIALS}\.|[A-Za-z0-9\u00ad]+))+"  # "1,000-year-old"

# A group, where there is one, is the token; the rest of the match is only looked at.
_RULES = tuple(
    re.compile(rule)
    for rule in (
        # Contractions written as one word, words with a clitic, words
        r"(?i:(can)not)",
        r"(?i:(gon(?=n)|wan(?=n)|got(?=t)|lem(?=m)|gim(?=m))(?:na|ta|me))",
        r"(?i:('t)(?:is|was))",
        _SGML,
        rf"({_WORD}){_CLITIC}",
        rf"([A-Za-z]*[A-MO-Za-mo-z])[nN]{_QUOTE}[tT]",
        _WORD,
        # Words that contain an apostrophe
        rf"{_APOS}[nN]{_APOS}?|{_APOS}[2-9]0[sS]|(?i:{_APOS}(?:em|till?|cause))",
        rf"(?i:dunkin|somethin|ol){_APOS}|(?i:c{_APOS}mon|e{_APOS}er|s{_APOS}mores|ev{_APOS}ry|li{_APOS}l)",
        rf"(?i:nat{_APOS}l|nor{_APOS}easter|cont{_APOS}d\.)",
        rf"[A-HJ-XZn]{_QUOTE}{_LETTER}{{2,}}|[cC]{_APOS}[eE]st|[lLdDjJ]{_APOS}",
        rf"{_LETTER}+[aeiouyAEIOUY]{_QUOTE}[aeiouA-Z]{_LETTER}*|(?i:(y{_APOS}){_LETTER})",
        # Addresses and tags of the net
        r"https?://(?:[^ \t\n\"<>|(){}]+[^ \t\n\"<>|.!?(){},-]|[\U00010000-\U0010ffff])",
        rf"[wW]{{3}}\.(?:{_LABEL}\.)+[a-zA-Z]{{2,4}}|{_HOST}",
        rf"(?:[wW]{{3}}\.(?:{_LABEL}\.)+?[a-zA-Z]{{2,4}}|{_HOST})/[^ \t\n\"<>|()]+[^ \t\n\"<>|.!?(){{}},-]",
        rf"(?:<|&lt;)?[a-zA-Z0-9](?:{_MAIL}|\.)*@(?:{_MAIL}+\.)*{_MAIL}+(?:>|&gt;)?",
        rf"@[a-zA-Z_][a-zA-Z_0-9]*|#{_LETTER}+",
        # Clitics on their own, an apostrophe before a word
        rf"({_CLITIC})[^A-Za-z]",
        rf"\u2019(?:[msdMSD]|(?i:re|ve|ll))|[nN]{_QUOTE}[tT]",
        r"(')[A-Za-z]\S",
        rf"({_APOS}[0-9]{{2}})\s",
        # Numbers, fractions, telephone numbers
        rf"[-+]?{_NUMBER}",
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
        r"[\u00b9\u00b2\u00b3\u2070-\u2079]+|[\u2080-\u2089]+|[\u00bc-\u00be\u2153-\u215e]",
        r"(?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4}",
        r"(?a:(?:\(\d{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0])\d{3,4}[- \u00a0]?\d{3,5})",
        r"(?a:(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5})",
        # Abbreviations
        rf"({_ENDING}\.)(?s:..)",
        rf"(?:{_ENDING}|{_TITLE}|[A-Za-z])\.",
        rf"((?i:art|ca|figs?|nos?|op|pp|prop)\.)(?:{_SPACE}|\u0085)?\d",
        rf"{_INITIALS}\.?",
        rf"((?:{_WORD}|{_THING}|{_TEAM}|{_CHAIN})\.)[,;:\u3001]",
        rf"([A-Za-z])\.(?:{_SPACE}|\n)+(?:{_STARTER}|{_SGML})(?:{_SPACE}|\n)",
        # Compounds
        rf"{_TEAM}|[A-Z]*\$|[cC]\+\+|[cCfF]#",
        r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
        _CHAIN,
        _THING,
        rf"({_ALNUM}+(?:\.{_ALNUM}+)*\.(?i:{_EXTENSION}))[\s.,!?]",
        # Symbols
        r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]",
        r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)",
        r"\"|&quot;|''|[`\u2018\u2019\u201a-\u201f\u2039\u203a\u00ab\u00bb]{1,2}|'|&apos;",
        r"-+|[\u2013-\u2015]|&(?:MD|[mn]dash);|\.{3,5}|(?:\.[ \u00a0]){2,4}\.|\u2026",
        r"[?!]+|@+|_+|\*+|(?:\\\*){1,3}|#+|<<|>>|&(?:amp|lt|gt|nbsp);|&#\d+;",
        r"[][<>(){}.,;:=/\\~^|&%$+]|[\u0080\u00a1-\u00ac\u00ae-\u00b8\u00bf\u00d7\u00f7\u037e\u0387\u20a4\u20ac\u20a0]"
        r"|[\u2016\u2017\u2020-\u2023\u2030-\u203b\u203e-\u2042\u2044\u207a-\u207e\u208a-\u208e]"
        r"|[\u2100-\u214f\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff65\uffe0\uffe1\uffe5\uffe6]",
    )
)
# By far the most of a caption: words of letters that nothing touches but a mark at their end. No rule but the first two
# can tell more of them, and those of abbreviations.
_PLAIN = re.compile(
    r"(?:(?!(?i:cannot|gonna|gotta|lemme|gimme|wanna)\b)(?:[A-Za-z]+[,;:?!]?[ \n]+"
    rf"|(?!(?:{_ENDING}|{_TITLE})\.)[A-Za-z]{{2,}}\.(?=\n| [A-Za-z])[ \n]))+"
)
_LETTERS = re.compile("[a-z]+")
# Other blanks (no-break, ideographic, ...) may begin an address, as in the original; elsewhere no rule takes them.
_BLANKS = re.compile(rf"[ \t\n]{_SPACE}*")

_VERBATIM = re.compile(r"^</?[A-Za-z!?]|[@/]|^[wW]{3}\.")  # tags and addresses
_CURLED = re.compile(rf"{_CLITIC}|[nN]{_QUOTE}[tT]|[`\u2018\u2019\u201a-\u201f\u2039\u203a\u00ab\u00bb]{{1,2}}")
_STRAIGHT = str.maketrans(
    {"\u2018": "`", "\u0092": "'", "\u2019": "'", "\u201b": "`", "\u201c": "``", "\u201d": "''"}
    | {"\u2039": "`", "\u203a": "'", "\u00ab": "``", "\u00bb": "''"}
)
_DASH_OR_DOTS = re.compile(r"-{1,4}|[\u2013-\u2015]|&(?:MD|[mn]dash);|\.{3,5}|(?:\.[ \u00a0]){2,4}\.|\u2026")
_RENAMED = (
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", '"': "''"}
    | {"&lt;": "<", "&gt;": ">", "&nbsp;": "", "&apos;": "'", "&quot;": "''"}
    | {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
    | {"\u00a2": "cents", "\u00a3": "#", "\u20ac": "$", "\u00a4": "$", "\u20a0": "$", "\u0080": "$"}
)


def _normalise(token: str) -> str:
    """The token as it is printed: ASCII quotes, named brackets, lower case, one dash for dashes and ellipses."""
    if token in _RENAMED:
        return _RENAMED[token]
    if _DASH_OR_DOTS.fullmatch(token):
        return "--"
    if _CURLED.fullmatch(token):
        token = token.translate(_STRAIGHT)
    elif not _VERBATIM.search(token):
        token = token.replace("(", "-lrb-").replace(")", "-rrb-").replace("&amp;", "&").replace("\u00ad", "")
    return token.replace("&apos;", "'").replace(" ", "\u00a0").lower()  # "1 1/2" stays one token


def _longest(text: str, start: int) -> tuple[int, int]:
    """The span of the token at ``start``; an empty span where no rule matches (such characters are dropped)."""
    best, span = start, (start, start)
    for rule in _RULES:
        match = rule.match(text, start)
        if match and match.end() > best:
            best, span = match.end(), match.span(match.lastindex or 0)
    return span


def ptb_tokenize(text: str) -> str:
    """The words of a caption, lower-cased and without punctuation, joined by single spaces.

    Line breaks of any kind count as spaces; a caption without words gives an empty string.

    >>> ptb_tokenize("He doesn't like T-shirts (at 5:30 p.m.) -- cannot wait!")
    "he does n't like t-shirts -lrb- at 5:30 p.m. -rrb- can not wait"
    """
    text = re.sub(r"[\r\n\v\f\u2028\u2029]", " ", text) + "\n"  # rules may look at the end of the line
    tokens, position = [], 0
    while position < len(text):
        if match := _BLANKS.match(text, position):
            position = match.end()
        elif match := _PLAIN.match(text, position):
            tokens += _LETTERS.findall(match.group().lower())
            position = match.end()
        else:
            start, end = _longest(text, position)
            if end > start:
                tokens.append(_normalise(text[start:end]))
            position = max(end, position + 1)
    line = " ".join(tokens).rstrip()  # an address may have taken in a blank that is not a space
    return " ".join(token for token in line.split(" ") if token not in _PUNCTUATION)
