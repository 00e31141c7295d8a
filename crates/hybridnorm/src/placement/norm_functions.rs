//! Table of norm function properties, used by validation, equations and serialization.
//!
//! To add a norm function, add its variant and its kernel in `hybridnorm_kernels::norm`, its match arm in the reference
//! of `ops/norm.rs`, and its entry in [`properties`].

use hybridnorm_kernels::norm::{NormFn, NormScalar};

use super::spec::NormSpec;

/// Properties of a norm function of a row x.
pub(super) struct NormProperties {
    /// Name in configuration files.
    pub(super) name: &'static str,
    /// The function before gain and bias in Unicode; `ε` marks the position of eps.
    pub(super) text: &'static str,
    /// The function before gain and bias in LaTeX.
    pub(super) latex: &'static str,
    /// True if it divides by the magnitude of the row, so that scaling the row has no effect, up to eps.
    pub(super) is_scale_invariant: bool,
    /// The term to which eps is added; `None` for a function without eps.
    pub(super) eps: Option<EpsTerm>,
    /// True if named placements use it with a bias, as its source does.
    pub(super) bias: bool,
}

/// The term to which eps is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EpsTerm {
    /// A mean over the channels.
    Mean,
    /// A sum over the channels.
    Sum,
}

/// Returns the table entry of a norm function. Its learned scalars are in [`NormFn::scalars`].
pub(super) const fn properties(function: NormFn) -> NormProperties {
    match function {
        // arXiv 1910.07467
        NormFn::Rmsnorm => NormProperties {
            name: "rmsnorm",
            text: "x / √(mean(x²) + ε)",
            latex: r"\frac{x}{\sqrt{\operatorname{mean}(x^2) + ε}}",
            is_scale_invariant: true,
            eps: Some(EpsTerm::Mean),
            bias: false,
        },
        // arXiv 1607.06450
        NormFn::Layernorm => NormProperties {
            name: "layernorm",
            text: "(x − mean(x)) / √(var(x) + ε)",
            latex: r"\frac{x - \operatorname{mean}(x)}{\sqrt{\operatorname{var}(x) + ε}}",
            is_scale_invariant: true,
            eps: Some(EpsTerm::Mean),
            bias: true,
        },
        // arXiv 2410.01131
        NormFn::L2 => NormProperties {
            name: "l2",
            text: "x / √(Σx² + ε)",
            latex: r"\frac{x}{\sqrt{\sum x^2 + ε}}",
            is_scale_invariant: true,
            eps: Some(EpsTerm::Sum),
            bias: false,
        },
        // arXiv 2503.10622
        NormFn::Dyt => NormProperties {
            name: "dyt",
            text: "tanh(α·x)",
            latex: r"\tanh(\alpha x)",
            is_scale_invariant: false,
            eps: None,
            bias: false,
        },
        // arXiv 2512.10938
        NormFn::Derf => NormProperties {
            name: "derf",
            text: "erf(α·x + s)",
            latex: r"\operatorname{erf}(\alpha x + s)",
            is_scale_invariant: false,
            eps: None,
            bias: true,
        },
    }
}

/// Name in files for no norm function.
pub(super) const NONE: &str = "none";

/// All names that a file may contain for a norm function.
pub(super) const NAMES: [&str; NormFn::ALL.len() + 1] = {
    let mut names = [NONE; NormFn::ALL.len() + 1];
    let mut i = 0;
    while i < NormFn::ALL.len() {
        names[i] = properties(NormFn::ALL[i]).name;
        i += 1;
    }
    names
};

/// Returns the norm function of this name.
pub(super) fn by_name(name: &str) -> Option<NormFn> {
    let mut all = NormFn::ALL.into_iter();
    all.find(|function| properties(*function).name == name)
}

/// Returns the names of the functions with a learned α, for messages: `` `dyt` and `derf` ``.
pub(super) fn names_with_alpha() -> String {
    let with_alpha = |function: &NormFn| function.scalars().contains(&NormScalar::Alpha);
    let all = NormFn::ALL.into_iter().filter(with_alpha);
    let names: Vec<String> = all.map(|f| format!("`{}`", properties(f).name)).collect();
    names.join(" and ")
}

impl NormSpec {
    /// Returns the learned scalars of the norm function.
    ///
    /// ```
    /// use hybridnorm::placement::{NormFn, NormSpec};
    /// let derf = NormSpec { kind: Some(NormFn::Derf), ..NormSpec::default() };
    /// assert_eq!(derf.scalars().len(), 2);
    /// assert!(NormSpec::default().scalars().is_empty());
    /// ```
    pub fn scalars(&self) -> &'static [NormScalar] {
        self.kind.map_or(&[], NormFn::scalars)
    }

    /// True if the norm function has a learned α.
    ///
    /// ```
    /// use hybridnorm::placement::{NormFn, NormSpec};
    /// let dyt = NormSpec { kind: Some(NormFn::Dyt), ..NormSpec::default() };
    /// assert!(dyt.has_alpha() && !NormSpec::default().has_alpha());
    /// ```
    pub fn has_alpha(&self) -> bool {
        self.scalars().contains(&NormScalar::Alpha)
    }

    /// Returns the initial value of a learned scalar.
    ///
    /// ```
    /// use hybridnorm::placement::{NormFn, NormScalar, NormSpec};
    /// let dyt = NormSpec { kind: Some(NormFn::Dyt), ..NormSpec::default() };
    /// assert_eq!(dyt.initial(NormScalar::Alpha), 0.5);
    /// ```
    pub fn initial(&self, scalar: NormScalar) -> f64 {
        match scalar {
            NormScalar::Alpha => self.alpha_init.unwrap_or(0.5),
            NormScalar::Shift => 0.0,
        }
    }

    /// True if norms divide by the magnitude of their input, so that scaling the input has no effect, up to eps.
    ///
    /// ```
    /// use hybridnorm::placement::{NormFn, NormSpec};
    /// let dyt = NormSpec { kind: Some(NormFn::Dyt), ..NormSpec::default() };
    /// assert!(NormSpec::default().is_scale_invariant() && !dyt.is_scale_invariant());
    /// ```
    pub fn is_scale_invariant(&self) -> bool {
        self.kind
            .is_some_and(|function| properties(function).is_scale_invariant)
    }

    /// Returns the term to which eps is added; `None` without a norm function or for one without eps.
    pub(super) fn eps_term(&self) -> Option<EpsTerm> {
        self.kind.and_then(|function| properties(function).eps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_contain_eps_and_learned_scalars() {
        for function in NormFn::ALL {
            let entry = properties(function);
            let of = |scalar| usize::from(function.scalars().contains(&scalar));
            let eps = usize::from(entry.eps.is_some());
            for (symbol, expected) in [
                ("ε", eps),
                ("α·x", of(NormScalar::Alpha)),
                ("+ s", of(NormScalar::Shift)),
            ] {
                assert_eq!(
                    entry.text.matches(symbol).count(),
                    expected,
                    "{function:?}: {symbol}"
                );
            }
            for (symbol, expected) in [
                ("ε", eps),
                (r"\alpha x", of(NormScalar::Alpha)),
                ("+ s", of(NormScalar::Shift)),
            ] {
                assert_eq!(
                    entry.latex.matches(symbol).count(),
                    expected,
                    "{function:?}: {symbol}"
                );
            }
        }
    }
}
