# ruff: noqa: RUF001, RUF002
r"""One spelling for what TeX, Unicode and Markdown spell in many ways.

In it `*` multiplies, `^` raises, `√` `π` `∞` `±` `≤` `≥` `≠` `≈` `∪` `∈` `∅` `°` are single characters, `⦃ ⦄` are the
braces of a set (`{ }` only group), and `\frac` is what is left of TeX where it can be read at all.
"""

import re
import unicodedata

_FRACTIONS = {
    ord(sign): " " + "/".join("".join(unicodedata.normalize("NFKC", sign)).split("\u2044"))
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
        **dict.fromkeys("“”″", '"'),
        **dict.fromkeys("∣", "|"),
        **dict.fromkeys("˚º", "°"),
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
        "′": "'",
    }
)
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
    **dict.fromkeys(
        ("left", "right", "big", "Big", "bigl", "bigr", "Bigl", "Bigr", "bigg", "displaystyle"), ""
    ),
    **dict.fromkeys(("textstyle", "limits", "boldsymbol", "bf", "rm", "it", "hline"), ""),
    **dict.fromkeys(("quad", "qquad", "space", "newline", "par"), " "),
    **{
        name: f" {name} "
        for name in ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh")
    },
    **{name: f" {name} " for name in ("cosh", "tanh", "ln", "log", "lg", "exp")},
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
    "$": "＄",
    "/": "",
}
_COMMAND = re.compile(r"\\([A-Za-z]+|[^A-Za-z\n])")
_STYLED = re.compile(
    r"\\(?:text[a-z]*|math(?:rm|bf|it|sf|tt|bb|cal)|mbox|hbox|operatorname\*?|boldsymbol|emph|underline|mathop|overline|vec|hat|overrightarrow)\s*"
    r"\{([^{}]{0,2000})\}"
)
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
_SPACES = re.compile(r"[^\S\n]+")


def unify(text: str) -> str:
    """`text` in the one spelling. Line breaks stay; words keep their case."""
    text = _STRONG.sub(r"\2", _BULLET.sub("", text)).translate(_FRACTIONS)
    text = _RAISED.sub(lambda run: "^{" + run[0].translate(_LEVEL) + "}", text)
    text = _LOWERED.sub(lambda run: "_{" + run[0].translate(_LEVEL) + "}", text)
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    text = _DEGREE.sub("°", text).replace("{,}", ",").replace("~", " ")
    text = _BARE_BOX.sub("", _RECURRING.sub(_recurring_fraction, text))
    if _ALIGNED.search(text):
        text = _ALIGNED.sub(" ", text).replace("&", "")
    for _ in range(4):  # a style within a style
        text, count = _STYLED.subn(r" \1 ", text)
        if not count:
            break
    text = _COMMAND.sub(lambda command: _COMMANDS.get(command[1], command[0]), text)
    text = _ABBREVIATED.sub("does not exist", _MATH_DELIMITERS.sub(r"\1", text)).replace("＄", "$")
    return _SPACES.sub(" ", _TIMES_X.sub(" * ", text)).strip()


def _recurring_fraction(match: re.Match[str]) -> str:
    """`0.1\\overline{6}` as `(15/90)`."""
    whole, start, period = match[1] or "", match[2], match[3]
    difference = int(whole + start + period) - int(whole + start or "0")
    return f"({difference}/{(10 ** len(period) - 1) * 10 ** len(start)})"


def split_outside_brackets(text: str, separator: re.Pattern[str]) -> list[str]:
    """The parts of `text` between the separators that stand outside all brackets, stripped."""
    parts, start, depth, position = [], 0, 0, 0
    while position < len(text):
        if depth == 0 and (match := separator.match(text, position)):
            parts.append(text[start : match.start()].strip())
            start = position = max(match.end(), position + 1)
            continue
        depth += (text[position] in "([{⦃⟨") - (text[position] in ")]}⦄⟩")
        depth = max(depth, 0)
        position += 1
    return [*parts, text[start:].strip()]


def enclosed(text: str) -> bool:
    """Whether the bracket that opens `text` is closed by its last character."""
    if len(text) < 2 or text[0] not in "([{⦃⟨" or text[-1] not in ")]}⦄⟩":
        return False
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([{⦃⟨") - (character in ")]}⦄⟩")
        if depth == 0:
            return position == len(text) - 1
    return False
