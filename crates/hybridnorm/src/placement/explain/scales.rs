//! Scales in equations, and the lines that define their values.

use super::super::resolve::ScaleContext;
use super::super::spec::{Formula, LearnedShape, Scale};
use super::math::{Equation, Math, formula, indexed, number, plain, sym};

/// Collector of the definitions for the scales of a group of blocks.
pub(super) struct Scales {
    n_layers: usize,
    d_model: usize,
    /// 1-based numbers of the first and last block; `None` outside the blocks.
    span: Option<(usize, usize)>,
    learned: usize,
    pub lines: Vec<Equation>,
}

impl Scales {
    pub fn new(n_layers: usize, d_model: usize, span: Option<(usize, usize)>) -> Self {
        Self {
            n_layers,
            d_model,
            span,
            learned: 0,
            lines: Vec::new(),
        }
    }

    /// Returns the symbol of a factor; `None` for the factor 1, which is omitted.
    pub fn factor(&mut self, scale: &Scale) -> Option<Math> {
        self.factor_per("channel", scale)
    }

    /// Returns the symbol of a factor whose vectors have one number per `what`.
    pub fn factor_per(&mut self, what: &str, scale: &Scale) -> Option<Math> {
        match scale {
            Scale::Const(1.0) => None,
            Scale::Learned { shape, init, start } => {
                self.learned += 1;
                let lambda = indexed(&sym("λ", "\\lambda"), self.learned);
                let shape = match shape {
                    LearnedShape::Scalar => "learned scalar, initialized to ".into(),
                    LearnedShape::Vector => {
                        format!("learned, one number per {what}, initialized to ")
                    }
                };
                let mut line = Equation::note(lambda.clone(), shape).math(&self.value_symbol(init));
                if let Some(start) = start {
                    let start = self.value_symbol(start);
                    line = line
                        .prose("; its parameter is initialized to ")
                        .math(&start);
                }
                self.lines.push(line);
                Some(lambda)
            }
            plain => Some(self.value_symbol(plain)),
        }
    }

    /// Returns the symbol of a constant factor or of an initial value, also for 1.
    pub fn value_symbol(&mut self, scale: &Scale) -> Math {
        match scale {
            Scale::Const(value) => number(*value),
            Scale::Formula(f) => {
                self.explain(*f);
                formula(*f)
            }
            Scale::Learned { init, .. } => self.value_symbol(init),
        }
    }

    fn explain(&mut self, f: Formula) {
        let lhs = formula(f);
        if self.lines.iter().any(|line| line.lhs == lhs) {
            return;
        }
        let rhs = match self.span {
            Some((first, last)) if f.depends_on_layer() && first != last => {
                let (a, b) = (self.value(f, first), self.value(f, last));
                sym(
                    format!("{} … {}  (l is the 1-based block index)", a.text, b.text),
                    format!(
                        "{} \\ldots {} \\quad \\text{{(l is the 1-based block index)}}",
                        a.latex, b.latex
                    ),
                )
            }
            Some((first, _)) => self.value(f, first),
            None => self.value(f, 1),
        };
        let rhs = match f {
            Formula::LayerScale => sym(
                format!("{}  (0.1 for L ≤ 18, 1e-5 for L ≤ 24, else 1e-6)", rhs.text),
                format!(
                    "{} \\quad (0.1 \\text{{ for }} L \\le 18,\\ 10^{{-5}} \\text{{ for }} L \\le \
                     24, \\text{{ else }} 10^{{-6}})",
                    rhs.latex
                ),
            ),
            _ => rhs,
        };
        self.lines.push(Equation::new(lhs, rhs));
    }

    fn value(&self, f: Formula, layer_number: usize) -> Math {
        let at = ScaleContext {
            layer_number: Some(layer_number),
            n_layers: self.n_layers,
            d_model: self.d_model,
        };
        f.value(at).map_or_else(|| plain("?"), number)
    }
}
