//! Detection of tokens that two datasets share.

use std::collections::HashMap;

use super::sets::EvalSet;
use crate::error::Result;
use crate::format_number::with_thousands_separators;

/// Returns a note for every pair of datasets that share documents, or whole token streams.
pub(super) fn overlap_notes(sets: &[EvalSet]) -> Result<Vec<String>> {
    if sets.len() < 2 {
        return Ok(Vec::new());
    }
    let documents = sets
        .iter()
        .map(|set| match &set.tokenizer {
            Some(tokenizer) => set.data.document_hashes(tokenizer.eos_id()),
            None => Ok(HashMap::new()),
        })
        .collect::<Result<Vec<_>>>()?;
    let mut notes = Vec::new();
    for (index, set) in sets.iter().enumerate() {
        for (other_index, other) in sets.iter().enumerate().skip(index + 1) {
            let theirs = &documents[other_index];
            let shared = documents[index].iter();
            let shared = shared.filter(|(hash, _)| theirs.contains_key(hash));
            let (count, tokens) =
                shared.fold((0, 0), |(n, all), (_, tokens)| (n + 1, all + tokens));
            let what = match count {
                0 if set.data.overlaps(&other.data) => "tokens".to_owned(),
                0 => continue,
                1 => format!("1 document of {} tokens", with_thousands_separators(tokens)),
                _ => format!(
                    "{} documents of {} tokens in total",
                    with_thousands_separators(count),
                    with_thousands_separators(tokens)
                ),
            };
            notes.push(format!(
                "{} and {} share {what}, which the pooled loss counts twice",
                set.name, other.name
            ));
        }
    }
    Ok(notes)
}
