//! Rendering of an explanation as plain text and as LaTeX.

use std::fmt::Write;

use super::math::Equation;
use super::{BlockGroup, Explanation};

impl Explanation {
    /// Returns aligned Unicode text for a terminal.
    ///
    /// ```
    /// use hybridnorm::placement::{Explanation, named};
    /// let text = Explanation::of(&named("hybridnorm")?)?.to_text();
    /// assert!(text.contains("Y  = X + A_QKV(X)"));
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let name = self.heading();
        let _ = writeln!(
            out,
            "{name}  ({} blocks of width {}, hash {})",
            self.n_layers, self.facts.d_model, self.hash
        );
        section(&mut out, "embedding", &self.embedding);
        for group in &self.groups {
            section(&mut out, &group.title, &group.equations);
            let _ = writeln!(out, "where");
            lines(&mut out, &group.definitions);
            let _ = writeln!(out, "  {}", costs(group));
        }
        section(&mut out, "head", &self.head);
        section(&mut out, "norm", &self.norm);
        section(&mut out, "initial weights", &self.init);
        if !self.warnings.is_empty() {
            let _ = writeln!(out, "\nwarnings");
            for warning in &self.warnings {
                let _ = writeln!(out, "  {warning}");
            }
        }
        out
    }

    /// Returns LaTeX for a document with amsmath: one self-contained `align*` per part.
    ///
    /// ```
    /// use hybridnorm::placement::{Explanation, named};
    /// let latex = Explanation::of(&named("hybridnorm")?)?.to_latex();
    /// assert!(latex.contains(r"X' &= Z + F(Z)"));
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn to_latex(&self) -> String {
        let mut out = String::new();
        let name = self.heading();
        let _ = writeln!(
            out,
            "% {name}, {} blocks of width {}, hash {}",
            self.n_layers, self.facts.d_model, self.hash
        );
        align(&mut out, "embedding", self.embedding.iter());
        for group in &self.groups {
            let all = group.equations.iter().chain(&group.definitions);
            align(&mut out, &group.title, all);
        }
        align(&mut out, "head", self.head.iter());
        align(&mut out, "norm", self.norm.iter());
        align(&mut out, "initial weights", self.init.iter());
        out
    }
}

impl Explanation {
    /// Returns the name on one line.
    fn heading(&self) -> String {
        let name = self.name.as_deref().unwrap_or("placement");
        name.replace(char::is_control, " ")
    }
}

fn section(out: &mut String, title: &str, equations: &[Equation]) {
    let _ = writeln!(out, "\n{title}");
    lines(out, equations);
}

fn lines(out: &mut String, equations: &[Equation]) {
    let width = |e: &Equation| e.lhs.text.chars().count();
    let widest = equations.iter().map(width).max().unwrap_or(0);
    for e in equations {
        let pad = " ".repeat(widest - width(e));
        let _ = writeln!(out, "  {}{pad} {} {}", e.lhs.text, e.relation, e.rhs.text);
    }
}

fn costs(group: &BlockGroup) -> String {
    let mut text = format!(
        "per block: {} norm parameters, {} normalized elements per token",
        group.norm_parameters, group.normalized_elements
    );
    if group.learned_parameters != Default::default() {
        let _ = write!(text, ", {} learned scales", group.learned_parameters);
    }
    text
}

fn align<'a>(out: &mut String, title: &str, equations: impl Iterator<Item = &'a Equation>) {
    let rows: Vec<String> = equations
        .map(|e| {
            let relation = match e.relation.as_str() {
                ":" => "{:}\\ ",
                other => other,
            };
            format!("  {} &{relation} {}", e.lhs.latex, e.rhs.latex)
        })
        .collect();
    let _ = writeln!(
        out,
        "\n\\noindent {}\n\\begin{{align*}}\n{}\n\\end{{align*}}",
        title.replace('–', "--"),
        rows.join(" \\\\\n")
    );
}
