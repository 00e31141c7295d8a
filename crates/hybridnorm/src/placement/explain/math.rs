//! Formulas in Unicode for a terminal and in LaTeX, built together.

use serde::{Deserialize, Serialize};

use super::super::spec::Formula;

/// A formula in both notations.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Math {
    /// Unicode.
    pub text: String,
    /// LaTeX, for math mode; needs amsmath only.
    pub latex: String,
}

/// One line: `lhs = rhs`, or `lhs : rhs` where the right side is prose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Equation {
    /// The symbol that is defined.
    pub lhs: Math,
    /// `=` or `:`.
    pub relation: String,
    /// Its definition.
    pub rhs: Math,
}

impl Equation {
    pub(super) fn new(lhs: Math, rhs: Math) -> Self {
        Self {
            lhs,
            relation: "=".into(),
            rhs,
        }
    }

    /// Creates a line whose right side is prose.
    pub(super) fn note(lhs: Math, prose: impl Into<String>) -> Self {
        let line = Self {
            lhs,
            relation: ":".into(),
            rhs: Math::default(),
        };
        line.prose(prose)
    }

    /// Appends prose to the right side.
    pub(super) fn prose(mut self, prose: impl Into<String>) -> Self {
        let text = prose.into();
        self.rhs.latex += &format!("\\text{{{}}}", escape(&text));
        self.rhs.text += &text;
        self
    }

    /// Appends a formula to the right side.
    pub(super) fn math(mut self, formula: &Math) -> Self {
        self.rhs.text += &formula.text;
        self.rhs.latex += &formula.latex;
        self
    }
}

/// Symbol in both notations.
pub(super) fn sym(text: impl Into<String>, latex: impl Into<String>) -> Math {
    Math {
        text: text.into(),
        latex: latex.into(),
    }
}

/// Symbol with the same spelling in both notations.
pub(super) fn plain(text: &str) -> Math {
    sym(text, text)
}

/// `a + b + …`
pub(super) fn sum(terms: &[Math]) -> Math {
    let join = |part: fn(&Math) -> &str| terms.iter().map(part).collect::<Vec<_>>().join(" + ");
    sym(join(|m| &m.text), join(|m| &m.latex))
}

/// `a − b`
pub(super) fn difference(a: &Math, b: &Math) -> Math {
    sym(
        format!("{} − {}", a.text, b.text),
        format!("{} - {}", a.latex, b.latex),
    )
}

/// `a, b`
pub(super) fn comma(a: &Math, b: &Math) -> Math {
    sym(
        format!("{}, {}", a.text, b.text),
        format!("{}, {}", a.latex, b.latex),
    )
}

/// `(x)`
pub(super) fn bracket(x: &Math) -> Math {
    apply(&Math::default(), x)
}

/// Symbol of the function `x / |x|`.
pub(super) fn unit() -> Math {
    sym("unit", "\\operatorname{unit}")
}

/// `f(x)`
pub(super) fn apply(f: &Math, x: &Math) -> Math {
    sym(
        format!("{}({})", f.text, x.text),
        format!("{}({})", f.latex, x.latex),
    )
}

/// `c·x`, or `x` without a factor.
pub(super) fn times(factor: Option<Math>, x: Math) -> Math {
    let Some(c) = factor else { return x };
    let fragile = |text: &str| text.contains('/') && !text.contains('^') || text.starts_with('-');
    let wrap = |part: &str, wanted: bool| match wanted {
        true => format!("({part})"),
        false => part.to_string(),
    };
    let is_sum = is_sum(&x.text);
    sym(
        format!(
            "{}·{}",
            wrap(&c.text, fragile(&c.text)),
            wrap(&x.text, is_sum)
        ),
        format!(
            "{} \\, {}",
            wrap(&c.latex, c.latex.starts_with('-')),
            wrap(&x.latex, is_sum)
        ),
    )
}

/// True if there is a sum or a difference outside all brackets.
fn is_sum(text: &str) -> bool {
    let mut depth = 0;
    text.chars().any(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        depth == 0 && matches!(c, '+' | '−')
    })
}

/// Formats a number with at most four significant digits.
pub(super) fn number(value: f64) -> Math {
    let text = digits(value);
    let latex = match text.split_once('e') {
        Some(("1", exponent)) => format!("10^{{{exponent}}}"),
        Some((mantissa, exponent)) => format!("{mantissa} \\cdot 10^{{{exponent}}}"),
        None => text.clone(),
    };
    sym(text, latex)
}

fn digits(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || (value.fract() == 0.0 && size < 1e6) {
        return format!("{value:.0}");
    }
    let trim = |text: &str| text.trim_end_matches('0').trim_end_matches('.').to_string();
    let scientific = format!("{value:.3e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-3..6).contains(&exponent) {
        trim(&format!(
            "{value:.*}",
            usize::try_from(3 - exponent).unwrap_or(0).max(1)
        ))
    } else {
        format!("{}e{exponent}", trim(mantissa))
    }
}

/// Symbol of a closed-form expression.
pub(super) fn formula(formula: Formula) -> Math {
    match formula {
        Formula::InvSqrtLayer => sym("1/√l", "\\tfrac{1}{\\sqrt{l}}"),
        Formula::InvSqrt2Layer => sym("1/√(2l)", "\\tfrac{1}{\\sqrt{2l}}"),
        Formula::InvSqrt2Depth => sym("1/√(2L)", "\\tfrac{1}{\\sqrt{2L}}"),
        Formula::TwoDepth => plain("2L"),
        Formula::DepthPower { k, p } => {
            let base = if k == 1.0 {
                plain("L")
            } else {
                let k = number(k);
                sym(format!("({}L)", k.text), format!("({} L)", k.latex))
            };
            let exponent = fraction(p);
            sym(
                format!("{}^{}", base.text, exponent.text),
                format!("{}^{{{}}}", base.latex, exponent.latex),
            )
        }
        Formula::SqrtWidth => sym("√d", "\\sqrt{d}"),
        Formula::InvSqrtWidth => sym("1/√d", "\\tfrac{1}{\\sqrt{d}}"),
        Formula::SqrtLn2Depth => sym("√(ln 2L)", "\\sqrt{\\ln 2L}"),
        Formula::LayerScale => sym("ε_L", "\\varepsilon_L"),
    }
}

/// Formats halves, thirds and quarters as fractions, other values as decimals.
fn fraction(value: f64) -> Math {
    for denominator in [2.0, 3.0, 4.0] {
        let numerator = value * denominator;
        if numerator.fract() == 0.0 && value.fract() != 0.0 {
            let text = format!("{}/{}", digits(numerator), digits(denominator));
            return sym(format!("({text})"), text);
        }
    }
    number(value)
}

/// Subscript digits.
pub(super) fn subscript(number: usize) -> String {
    number
        .to_string()
        .chars()
        .map(|c| char::from_u32(0x2080 + c.to_digit(10).unwrap_or(0)).unwrap_or(c))
        .collect()
}

/// `symbol` with a numeric subscript.
pub(super) fn indexed(symbol: &Math, index: usize) -> Math {
    sym(
        format!("{}{}", symbol.text, subscript(index)),
        format!("{}_{{{index}}}", symbol.latex),
    )
}

/// Escapes prose for LaTeX's text mode.
fn escape(prose: &str) -> String {
    let mut out = String::new();
    for c in prose.chars() {
        match c {
            '%' | '&' | '#' | '_' | '{' | '}' | '$' => {
                out.push('\\');
                out.push(c);
            }
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '·' => out.push_str("$\\cdot$"),
            'α' => out.push_str("$\\alpha$"),
            'σ' => out.push_str("$\\sigma$"),
            '√' => out.push_str("$\\surd$"),
            '≥' => out.push_str("$\\ge$"),
            '≤' => out.push_str("$\\le$"),
            '–' => out.push_str("--"),
            c if c.is_ascii() => out.push(c),
            _ => out.push('?'),
        }
    }
    out
}
