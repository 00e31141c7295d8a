//! SentencePiece's BPE as merges: two adjacent pieces are merged to the piece of the highest score (Kudo and
//! Richardson, arXiv 1808.06226).

use std::cmp::Ordering;
use std::collections::HashMap;

use serde_json::{Value as Json, json};

/// Character that stands for a space.
const SPACE: &str = "\u{2581}";
/// Maximum number of merges.
const MERGES_LIMIT: usize = 1 << 22;
/// Maximum bytes of all merges together.
const BYTES_LIMIT: usize = 128 << 20;
/// Maximum bytes of all splits of the pieces together, which grow with the square of a piece's length; seconds.
const SPLITS_LIMIT: usize = 4 << 30;

/// A pair of pieces with the score of the merged one.
struct Merge<'a> {
    left: (&'a str, u32),
    right: (&'a str, u32),
    score: f64,
}

/// Returns the merges of these pieces with ids and scores: every pair of pieces whose concatenation is a piece, by the
/// score of the latter, then by the ids of the pair.
pub(super) fn merges<'a>(
    pieces: impl Iterator<Item = (&'a str, u32, f64)>,
) -> Result<Vec<(&'a str, &'a str)>, String> {
    let pieces: Vec<_> = pieces.collect();
    let ids: HashMap<&str, u32> = pieces.iter().map(|(text, id, _)| (*text, *id)).collect();
    let mut found = Vec::new();
    let (mut bytes, mut split_bytes) = (0, 0_usize);
    for (text, id, score) in &pieces {
        split_bytes = split_bytes.saturating_add(text.len().saturating_mul(text.len()));
        if split_bytes > SPLITS_LIMIT {
            return Err(format!(
                "tokenizer.ggml.tokens[{id}] has {} bytes, and it and the tokens before it have splits of more than \
                 {SPLITS_LIMIT} bytes; expected tokens of up to about 100 bytes",
                text.len()
            ));
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) else {
                continue;
            };
            bytes += text.len();
            if found.len() >= MERGES_LIMIT || bytes > BYTES_LIMIT {
                return Err(format!(
                    "tokenizer.ggml.tokens gives more than {MERGES_LIMIT} merges, or more than {BYTES_LIMIT} bytes of \
                     them"
                ));
            }
            found.push(Merge {
                left: (left, left_id),
                right: (right, right_id),
                score: *score,
            });
        }
    }
    found.sort_by(Merge::order);
    let pairs = found.iter().map(|merge| (merge.left.0, merge.right.0));
    Ok(pairs.collect())
}

impl Merge<'_> {
    fn order(&self, other: &Self) -> Ordering {
        let by_score = other.score.total_cmp(&self.score);
        by_score.then_with(|| (self.left.1, self.right.1).cmp(&(other.left.1, other.right.1)))
    }
}

/// Returns the `normalizer` of a `tokenizer.json`, which marks spaces; with `has_prefix` it adds one before the text.
pub(super) fn normalizer(has_prefix: bool) -> Json {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    match has_prefix {
        true => json!({
            "type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace],
        }),
        false => replace,
    }
}

/// Returns true if a `tokenizer.json` with this normalizer and pre-tokenizer adds a space before the text, and false if
/// it only marks spaces; `None` if it does anything else.
pub(super) fn has_prefix(with_normalizer: &Json, pre_tokenizer: &Json) -> Option<bool> {
    match (with_normalizer, pre_tokenizer) {
        (found, Json::Null) => [true, false]
            .into_iter()
            .find(|has| *found == normalizer(*has)),
        // The form of newer files.
        (Json::Null, split) if split["type"] == "Metaspace" && split["replacement"] == SPACE => {
            (split["split"] == false).then(|| split["prepend_scheme"] != "never")
        }
        _ => None,
    }
}

/// Returns the `decoder` of a `tokenizer.json`, which reverses [`normalizer`] and joins the bytes of unknown
/// characters.
pub(super) fn decoder(has_prefix: bool) -> Json {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if has_prefix {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_follow_scores() {
        let pieces = [
            ("a", 0, -9.0),
            ("b", 1, -9.0),
            ("ab", 2, -1.0),
            ("ba", 3, 0.0),
            ("aba", 4, -2.0),
            ("xb", 5, 0.0),
        ];
        let found = merges(pieces.into_iter()).unwrap();
        assert_eq!(found, [("b", "a"), ("a", "b"), ("a", "ba"), ("ab", "a")]);
    }

    #[test]
    fn the_number_of_merges_is_limited() {
        let long = "a".repeat(4000);
        let pieces = (1..4000_u32).map(|n| (&long[..n as usize], n, 0.0));
        assert!(merges(pieces).unwrap_err().contains("merges"));
        let piece = "a".repeat(1 << 20);
        let problem = merges([(piece.as_str(), 7, 0.0)].into_iter()).unwrap_err();
        assert!(problem.contains("tokens[7] has 1048576 bytes"), "{problem}");
    }
}
