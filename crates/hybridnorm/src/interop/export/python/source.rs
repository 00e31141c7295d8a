//! Text of a Python module: classes that are written once, whichever blocks use them, and constants.

use std::collections::BTreeMap;
use std::fmt::Write;

/// Text of a Python class, except its name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Class {
    /// Base class.
    pub(super) base: &'static str,
    /// Lines of the docstring.
    pub(super) doc: Vec<String>,
    /// Parameters of the constructor after `self`.
    pub(super) parameters: &'static str,
    /// Statements of the constructor after `super().__init__()`.
    pub(super) init: Vec<String>,
    /// The other methods.
    pub(super) methods: Vec<Method>,
}

/// A method of a class.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Method {
    /// Name and parameters, such as `forward(self, x)`.
    pub(super) signature: &'static str,
    /// Statements.
    pub(super) body: Vec<String>,
}

impl Class {
    fn render(&self, name: &str) -> String {
        let mut out = format!("class {name}({}):\n", self.base);
        if let [first, rest @ ..] = &self.doc[..] {
            let _ = write!(out, "    \"\"\"{first}");
            for line in rest {
                let indent = if line.is_empty() { "" } else { "    " };
                let _ = write!(out, "\n{indent}{line}");
            }
            let end = if rest.is_empty() { "" } else { "\n    " };
            let _ = writeln!(out, "{end}\"\"\"\n");
        }
        let parameters = match self.parameters {
            "" => String::new(),
            parameters => format!(", {parameters}"),
        };
        let _ = writeln!(out, "    def __init__(self{parameters}):");
        let _ = writeln!(out, "        super().__init__()");
        body(&mut out, &self.init);
        for method in &self.methods {
            let _ = writeln!(out, "\n    def {}:", method.signature);
            body(&mut out, &method.body);
        }
        out
    }
}

fn body(out: &mut String, lines: &[String]) {
    for line in lines {
        let _ = writeln!(out, "        {line}");
    }
}

/// Classes and constants of a module, in the order of their definition.
#[derive(Debug, Default)]
pub(super) struct Module {
    constants: Vec<String>,
    classes: Vec<(String, &'static str, Class)>,
    /// Names of helper functions and classes of fragments that are used.
    used: BTreeMap<&'static str, ()>,
}

impl Module {
    /// Adds a class, unless an equal one exists; returns its name: `kind`, or `kind` and a number.
    pub(super) fn class(&mut self, kind: &'static str, class: Class) -> String {
        let mut same_kind = self.classes.iter().filter(|(_, other, _)| *other == kind);
        if let Some((name, ..)) = same_kind.clone().find(|(.., known)| *known == class) {
            return name.clone();
        }
        let name = match same_kind.by_ref().count() {
            0 => kind.to_owned(),
            n => format!("{kind}{}", n + 1),
        };
        self.classes.push((name.clone(), kind, class));
        name
    }

    /// Returns the names of all classes of a kind.
    pub(super) fn names(&self, kind: &str) -> Vec<&str> {
        let all = self.classes.iter().filter(|(_, other, _)| *other == kind);
        all.map(|(name, ..)| name.as_str()).collect()
    }

    /// True if the constructor of a class has this parameter.
    pub(super) fn has_parameter(&self, class: &str, parameter: &str) -> bool {
        let mut all = self.classes.iter();
        all.any(|(name, _, found)| name == class && found.parameters.contains(parameter))
    }

    /// True if a norm has an eps.
    pub(super) fn has_eps(&self) -> bool {
        let mut all = self.classes.iter();
        all.any(|(.., class)| class.parameters.contains("EPS"))
    }

    /// Adds a constant with one number per layer, unless it exists; returns the expression of a layer's number.
    pub(super) fn per_layer(&mut self, name: &str, values: &[f64]) -> String {
        let name = name.to_uppercase();
        let values: Vec<String> = values.iter().map(|value| number(*value)).collect();
        let line = format!("{name} = ({},)", values.join(", "));
        if !self.constants.contains(&line) {
            self.constants.push(line);
        }
        format!("{name}[layer_idx]")
    }

    /// Adds a constant with one index per layer; returns its name.
    pub(super) fn per_layer_index(&mut self, name: &str, values: &[usize]) -> String {
        let name = name.to_uppercase();
        let values: Vec<String> = values.iter().map(usize::to_string).collect();
        self.constants
            .push(format!("{name} = ({},)", values.join(", ")));
        name
    }

    /// Marks a helper as used.
    pub(super) fn uses(&mut self, helper: &'static str) {
        self.used.insert(helper, ());
    }

    /// True if the helper is used.
    pub(super) fn is_used(&self, helper: &str) -> bool {
        self.used.contains_key(helper)
    }

    /// Returns the definitions of all constants.
    pub(super) fn constants(&self) -> String {
        self.constants.join("\n")
    }

    /// Returns the definitions of all classes.
    pub(super) fn classes(&self) -> Vec<String> {
        let all = self.classes.iter();
        all.map(|(name, _, class)| class.render(name)).collect()
    }
}

/// Replaces a line that consists of a marker by lines with its indentation, or removes it.
pub(super) fn replace_line(text: &str, marker: &str, lines: &[String]) -> String {
    let mut out = String::new();
    for line in text.lines() {
        match line.trim_start() == marker {
            true => {
                let indent = &line[..line.len() - marker.len()];
                for new in lines {
                    let indent = if new.is_empty() { "" } else { indent };
                    out += &format!("{indent}{new}\n");
                }
            }
            false => out += &format!("{line}\n"),
        }
    }
    out
}

/// Returns a number as a Python literal with the same value.
pub(super) fn number(value: f64) -> String {
    format!("{value:?}")
}

/// Returns `factor * x`, or `x` without a factor.
pub(super) fn times(factor: Option<&str>, x: &str) -> String {
    match factor {
        None => x.to_owned(),
        Some(factor) => format!("{factor} * {x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(line: &str) -> Class {
        Class {
            base: "nn.Module",
            parameters: "config",
            init: vec![line.to_owned()],
            ..Class::default()
        }
    }

    #[test]
    fn equal_classes_are_written_once() {
        let mut module = Module::default();
        assert_eq!(module.class("Attention", class("a")), "Attention");
        assert_eq!(module.class("Attention", class("b")), "Attention2");
        assert_eq!(module.class("Attention", class("a")), "Attention");
        assert_eq!(module.class("Norm", class("a")), "Norm");
        assert_eq!(module.names("Attention"), ["Attention", "Attention2"]);
        assert_eq!(module.classes().len(), 3);
    }

    #[test]
    fn numbers_are_literals_of_the_same_value() {
        for (value, literal) in [(1.0, "1.0"), (1e-6, "1e-6"), (0.1, "0.1"), (1e20, "1e20")] {
            assert_eq!(number(value), literal);
        }
        assert_eq!(times(Some("0.5"), "x"), "0.5 * x");
        assert_eq!(times(None, "x"), "x");
    }
}
