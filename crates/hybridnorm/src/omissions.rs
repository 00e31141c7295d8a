//! Omitted parts of a result, by reason: a partial result is never presented as complete.

use serde::{Deserialize, Serialize};

/// Number of examples kept per reason.
const EXAMPLES: usize = 3;

/// Unit of a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Unit {
    /// Files and folders of an input.
    Files,
    /// Records of files, such as lines of JSON.
    Records,
    /// Documents of text.
    Documents,
    /// Tokens.
    Tokens,
    /// Tensors of a checkpoint.
    Tensors,
}

impl Unit {
    /// Returns the plural name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Records => "records",
            Self::Documents => "documents",
            Self::Tokens => "tokens",
            Self::Tensors => "tensors",
        }
    }
}

/// Items of one unit that were omitted for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Omission {
    /// Unit of the count.
    pub unit: Unit,
    /// Reason of the omission.
    pub reason: String,
    /// Number of omitted items.
    pub count: u64,
    /// First few items, by name and position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
}

/// All omissions, in the order in which their reasons first occurred.
///
/// ```
/// use hybridnorm::omissions::{Omissions, Unit};
///
/// let mut omissions = Omissions::default();
/// omissions.add(Unit::Files, "hidden", 2, Some(".git".into()));
/// assert_eq!(omissions.lines(), ["omitted 2 files: hidden (.git, ...)"]);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Omissions(Vec<Omission>);

impl Omissions {
    /// Adds `count` items of a unit that were omitted for `reason`, such as `example`.
    pub fn add(&mut self, unit: Unit, reason: &str, count: u64, example: Option<String>) {
        if count == 0 {
            return;
        }
        let known = self
            .0
            .iter()
            .position(|omission| omission.unit == unit && omission.reason == reason);
        let index = known.unwrap_or_else(|| {
            self.0.push(Omission {
                unit,
                reason: reason.to_owned(),
                count: 0,
                examples: Vec::new(),
            });
            self.0.len() - 1
        });
        let omission = &mut self.0[index];
        omission.count += count;
        if omission.examples.len() < EXAMPLES {
            omission.examples.extend(example);
        }
    }

    /// Merges other omissions into these.
    pub fn extend(&mut self, other: &Self) {
        for omission in &other.0 {
            let Omission {
                unit,
                reason,
                count,
                examples,
            } = omission;
            let mut examples = examples.iter().cloned();
            self.add(*unit, reason, *count, examples.next());
            let existing = self.0.iter_mut();
            let existing = existing
                .rev()
                .find(|existing| existing.unit == *unit && existing.reason == *reason);
            if let Some(existing) = existing {
                let remaining = EXAMPLES.saturating_sub(existing.examples.len());
                existing.examples.extend(examples.take(remaining));
            }
        }
    }

    /// True if nothing was omitted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of omitted items of a unit, over all reasons.
    pub fn count(&self, unit: Unit) -> u64 {
        let of_unit = self.0.iter().filter(|omission| omission.unit == unit);
        of_unit.map(|omission| omission.count).sum()
    }

    /// Returns the omissions of one unit.
    #[must_use]
    pub fn of(&self, unit: Unit) -> Self {
        let of_unit = self.0.iter().filter(|omission| omission.unit == unit);
        Self(of_unit.cloned().collect())
    }

    /// Iterates over the omissions, one per reason.
    pub fn iter(&self) -> impl Iterator<Item = &Omission> {
        self.0.iter()
    }

    /// Returns a line for each reason: `omitted 3 files: unknown kind (a.csv, b.doc, ...)`.
    pub fn lines(&self) -> Vec<String> {
        let line = |omission: &Omission| {
            let Omission {
                unit,
                reason,
                count,
                examples,
            } = omission;
            let unit = match (unit.name(), count) {
                (name, 1) => &name[..name.len() - 1],
                (name, _) => name,
            };
            let more = match examples.len() as u64 {
                shown if shown < *count && shown > 0 => ", ...",
                _ => "",
            };
            let examples = match examples.as_slice() {
                [] => String::new(),
                examples => format!(" ({}{more})", examples.join(", ")),
            };
            format!("omitted {count} {unit}: {reason}{examples}")
        };
        self.0.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_counts_by_reason() {
        let mut omitted = Omissions::default();
        for name in ["a", "b", "c", "d"] {
            omitted.add(Unit::Files, "unknown kind", 1, Some(name.into()));
        }
        omitted.add(Unit::Tokens, "end of the stream", 0, None);
        let mut all = Omissions::default();
        all.add(Unit::Documents, "blank", 1, None);
        all.extend(&omitted);
        all.extend(&omitted);
        assert_eq!(all.count(Unit::Files), 8);
        assert_eq!(all.count(Unit::Tokens), 0);
        assert_eq!(
            all.lines(),
            [
                "omitted 1 document: blank",
                "omitted 8 files: unknown kind (a, b, c, ...)"
            ]
        );
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Omissions>(&json).unwrap(), all);
    }
}
