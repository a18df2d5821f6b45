# ruff: noqa: RUF001, RUF002
r"""One notation for what TeX, Unicode and Markdown write in many ways.

`*` multiplies, `^` raises to a power, and `√` `π` `∞` `±` `≤` `≥` `≠` `≈` `∪` `∈` `∅` `°` are
single characters. `⦃ ⦄` are the braces of a set, and `{ }` only group. `\frac` is the only TeX
command that remains in a readable formula.
"""

import re
import unicodedata

_FRACTION_SLASH = "\u2044"
_FRACTIONS = {
    ord(sign): " " + unicodedata.normalize("NFKC", sign).replace(_FRACTION_SLASH, "/")
    for sign in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
}
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_LEVEL = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻₀₁₂₃₄₅₆₇₈₉", "0123456789+-0123456789")
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63", "-"),
        **dict.fromkeys("×·⋅∙∗✕✖", "*"),
        **dict.fromkeys("÷∕⁄", "/"),
        **dict.fromkeys("‘’′ʹ", "'"),
        **dict.fromkeys("“”", '"'),
        **dict.fromkeys("∣", "|"),
        **dict.fromkeys("∼∽≃≅", "≈"),
        **dict.fromkeys("⟨〈", "⟨"),
        **dict.fromkeys("⟩〉", "⟩"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad`✓✔✅☑", None),
        "⩽": "≤",
        "⩾": "≥",
        "μ": "µ",
        "Ω": "Ω",
        "∛": r"√[3]",
        "≦": "≤",
        "≧": "≥",
        "、": ",",
    }
)
_BEFORE_NFKC = str.maketrans({"º": "°", "˚": "°", "″": '"', "∶": ":"})  # which would change them
_FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp"
_STYLES = (
    "left right big Big bigl bigr Bigl Bigr bigg displaystyle textstyle limits boldsymbol bf rm it"
    " hline"
)
_DOLLAR = "\uff04"  # a placeholder for `\$`, so that it does not delimit mathematics
_COMMANDS = {
    "times": "*",
    "cdot": "*",
    "ast": "*",
    "div": "/",
    "pm": "±",
    "mp": "∓",
    "le": "≤",
    "leq": "≤",
    "leqslant": "≤",
    "ge": "≥",
    "geq": "≥",
    "geqslant": "≥",
    "lt": "<",
    "gt": ">",
    "ne": "≠",
    "neq": "≠",
    "approx": "≈",
    "simeq": "≈",
    "sim": "≈",
    "in": "∈",
    "cup": "∪",
    "cap": "∩",
    "to": "→",
    "rightarrow": "→",
    "longrightarrow": "→",
    "implies": "→",
    "Rightarrow": "→",
    "ldots": "...",
    "dots": "...",
    "emptyset": "∅",
    "varnothing": "∅",
    "infty": "∞",
    "pi": "π",
    "sqrt": "√",
    "degree": "°",
    "circ": "°",
    "angle": "∠",
    "parallel": "∥",
    "perp": "⊥",
    "triangle": "△",
    "prime": "'",
    "percent": "%",
    "euro": "€",
    "pounds": "£",
    "langle": "⟨",
    "rangle": "⟩",
    "lbrace": "⦃",
    "rbrace": "⦄",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "mid": "|",
    "colon": ":",
    "lbrack": "[",
    "rbrack": "]",
    "dfrac": r"\frac",
    "tfrac": r"\frac",
    "cfrac": r"\frac",
    "frac": r"\frac",
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "delta": "δ",
    "epsilon": "ε",
    "varepsilon": "ε",
    "theta": "θ",
    "lambda": "λ",
    "mu": "µ",
    "rho": "ρ",
    "sigma": "σ",
    "tau": "τ",
    "phi": "φ",
    "varphi": "φ",
    "omega": "ω",
    "Omega": "Ω",
    "Delta": "Δ",
    "Phi": "Φ",
    "Omicron": "Ο",
    "ell": "l",
    **dict.fromkeys(_STYLES.split(), ""),
    **dict.fromkeys(("quad", "qquad", "space", "newline", "par"), " "),
    **{name: f" {name} " for name in _FUNCTIONS.split()},
    "%": "%",
    "#": "#",
    "&": "&",
    "_": "_",
    "{": "⦃",
    "}": "⦄",
    "|": "|",
    "(": " ",
    ")": " ",
    "[": " ",
    "]": " ",
    ",": " ",
    ";": " ",
    ":": " ",
    ">": " ",
    " ": " ",
    "!": "",
    "$": _DOLLAR,
    "/": "",
}
_COMMAND = re.compile(r"\\([A-Za-z]+|[^A-Za-z\n])")
_STYLED = re.compile(
    r"\\(?:ce|text[a-z]*|math(?:rm|bf|it|sf|tt|bb|cal)|mbox|hbox|operatorname\*?|boldsymbol|emph"
    r"|underline|mathop|overline|vec|hat|overrightarrow)\s*"
    r"\{([^{}]{0,2000})\}"
)
_STYLE_NESTING = 4
_RECURRING = re.compile(
    r"(?<![0-9.])([0-9]{1,9})?\.([0-9]{0,9})\\(?:overline|bar|dot)\s*\{?([0-9]{1,9})\}?"
)
_BARE_BOX = re.compile(r"\\f?boxed\s*(?![\s{])")
_ALIGNED = re.compile(r"\\(?:begin|end)\{(?:align|aligned|equation|gather|gathered|split)\*?\}")
_DEGREE = re.compile(r"\^\s*\{?\s*(?:\\circ|\\degree|°|∘)\s*\}?|∘")
_MATH_DELIMITERS = re.compile(r"\$\$?([^$]+)\$\$?(?![0-9])")
_STRONG = re.compile(
    r"(?<![\w)*}])(\*\*|__|\*)(?=[^\s*])((?:[^*\n]|(?<!\*)\*(?!\*)){1,2000}?)(?<=[^\s*])\1(?![\w(*])"
)
_TIMES_X = re.compile(r"(?<=[0-9])(?:\s+[xX]\s+|\s*[xX]\s*(?=10\s*\^))(?=[0-9])")
_BULLET = re.compile(r"^\s*(?:[•▪●*]|-(?=\s+[^\W\d_]{2})|#{1,6})\s+", re.MULTILINE)
_ABBREVIATED = re.compile(r"\bDNE\b|\bD\.N\.E\.")
_REALS = re.compile(  # but not in `\mathbb{R}^2`
    r"(?:ℝ|\\mathbb\s*(?:\{\s*R\s*\}|R\b))(?=\s*(?:$|[$})\].]|\\[)\]]))"
)
_ARROW = re.compile(r"(?<![-<])-{1,2}>")
_SPACES = re.compile(r"[^\S\n]+")


_OPENING = "([{⦃⟨"
_CLOSING = ")]}⦄⟩"
_NESTING = dict.fromkeys(_OPENING, 1) | dict.fromkeys(_CLOSING, -1)


def unify(text: str) -> str:
    """Return `text` in the one notation. Line breaks remain, and words keep their case."""
    text = _BULLET.sub("", text)
    text = _STRONG.sub(r"\2", text)
    text = text.translate(_FRACTIONS)
    text = _RAISED.sub(_superscript, text)
    text = _LOWERED.sub(_subscript, text)
    text = _REALS.sub("all real numbers", text)
    text = unicodedata.normalize("NFKC", text.translate(_BEFORE_NFKC))
    text = text.translate(_SIGNS)
    text = _ARROW.sub("→", text)
    text = _DEGREE.sub("°", text)
    text = text.replace("{,}", ",").replace("~", " ")
    text = _RECURRING.sub(_recurring_fraction, text)
    text = _BARE_BOX.sub("", text)
    if _ALIGNED.search(text):
        text = _ALIGNED.sub(" ", text).replace("&", "")
    for _ in range(_STYLE_NESTING):
        text, count = _STYLED.subn(r" \1 ", text)
        if not count:
            break
    text = _COMMAND.sub(_command, text)
    text = _MATH_DELIMITERS.sub(r"\1", text)
    text = _ABBREVIATED.sub("does not exist", text)
    text = text.replace(_DOLLAR, "$")
    text = _TIMES_X.sub(" * ", text)
    return _SPACES.sub(" ", text).strip()


def split_outside_brackets(text: str, separator: re.Pattern[str]) -> list[str]:
    """Return the stripped parts of `text` between the separators that are outside all brackets."""
    parts = []
    start = 0
    depth = 0
    position = 0
    while position < len(text):
        if depth == 0 and (match := separator.match(text, position)):
            parts.append(text[start : match.start()].strip())
            position = max(match.end(), position + 1)
            start = position
            continue
        depth = max(depth + _NESTING.get(text[position], 0), 0)
        position += 1
    parts.append(text[start:].strip())
    return parts


def enclosed(text: str) -> bool:
    """Return whether the last character of `text` closes the bracket that opens it."""
    if len(text) < 2 or text[0] not in _OPENING or text[-1] not in _CLOSING:
        return False
    depth = 0
    for position, character in enumerate(text):
        depth += _NESTING.get(character, 0)
        if depth == 0:
            return position == len(text) - 1
    return False


def _superscript(run: re.Match[str]) -> str:
    return "^{" + run[0].translate(_LEVEL) + "}"


def _subscript(run: re.Match[str]) -> str:
    return "_{" + run[0].translate(_LEVEL) + "}"


def _command(command: re.Match[str]) -> str:
    return _COMMANDS.get(command[1], command[0])


def _recurring_fraction(match: re.Match[str]) -> str:
    r"""Turn `0.1\overline{6}` into `(15/90)`."""
    whole = match[1] or ""
    start = match[2]
    period = match[3]
    difference = int(whole + start + period) - int(whole + start or "0")
    denominator = (10 ** len(period) - 1) * 10 ** len(start)
    return f"({difference}/{denominator})"
