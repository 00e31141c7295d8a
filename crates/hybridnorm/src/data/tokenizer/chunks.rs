//! Splitting of long text into chunks that are tokenized one by one, so that memory does not grow with the
//! length of a document.

/// Soft limit of a chunk in bytes: it ends at the next position where a split changes no token.
pub(in crate::data) const SOFT_LIMIT: usize = 256 << 10;
/// Soft limit for tokenizers that take up to 200 bytes of memory for each byte of a chunk.
pub(super) const SOFT_LIMIT_HF: usize = 64 << 10;
/// Hard limit of a chunk in bytes: it ends here if a split is allowed; otherwise a longer one is rejected.
pub(super) const HARD_LIMIT: usize = 1 << 20;
/// Maximum run of whitespace in characters; longer runs overflow the stack of the regex engine.
const MAX_SPACE_RUN: usize = 1 << 16;

/// Positions where text may be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::data) enum SplitPoints {
    /// Before a space that follows another character, which no token spans; and anywhere after 1 MiB
    /// without such a position, which can change the two adjacent tokens.
    BeforeSpacesOrAtLimit,
    /// Only before such a space.
    BeforeSpaces,
    /// Only after 1 MiB, anywhere: tokens may span spaces.
    AtLimit,
    /// Nowhere.
    Nowhere,
}

/// Splits the text into chunks, each of which ends at the first allowed position after `soft` bytes.
/// Regardless of `points`, runs of more than 65,536 characters of whitespace are split.
pub(in crate::data) fn chunks(
    text: &str,
    points: SplitPoints,
    soft: usize,
) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut run = 0;
        let mut after_space = true;
        let end = rest.char_indices().find_map(|(at, c)| {
            let is_space = c.is_whitespace();
            run = if is_space { run + 1 } else { 0 };
            let is_soft = at >= soft
                && matches!(
                    points,
                    SplitPoints::BeforeSpacesOrAtLimit | SplitPoints::BeforeSpaces
                )
                && c == ' '
                && !after_space;
            let is_hard = at >= HARD_LIMIT
                && matches!(
                    points,
                    SplitPoints::BeforeSpacesOrAtLimit | SplitPoints::AtLimit
                );
            after_space = is_space;
            (run > MAX_SPACE_RUN || is_soft || is_hard).then_some(at)
        });
        let (chunk, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_text_is_one_chunk_and_chunks_concatenate_to_the_text() {
        assert_eq!(
            chunks("a b", SplitPoints::BeforeSpacesOrAtLimit, SOFT_LIMIT).collect::<Vec<_>>(),
            ["a b"]
        );
        assert_eq!(
            chunks("", SplitPoints::BeforeSpacesOrAtLimit, SOFT_LIMIT).count(),
            0
        );
        let text = "wörd  and\n more ".repeat(100_000) + &"x".repeat(3 << 20);
        for points in [
            SplitPoints::BeforeSpacesOrAtLimit,
            SplitPoints::BeforeSpaces,
            SplitPoints::AtLimit,
            SplitPoints::Nowhere,
        ] {
            let all: Vec<_> = chunks(&text, points, SOFT_LIMIT).collect();
            assert_eq!(all.concat(), text);
            let longest = all.iter().map(|chunk| chunk.len()).max().unwrap();
            match points {
                SplitPoints::BeforeSpacesOrAtLimit | SplitPoints::AtLimit => {
                    assert!(longest <= HARD_LIMIT + 4)
                }
                SplitPoints::BeforeSpaces => assert!(longest >= 3 << 20 && all.len() > 4),
                SplitPoints::Nowhere => assert_eq!(all.len(), 1),
            }
            // A chunk that is split off at a space begins with that space.
            let at_spaces = all.iter().skip(1).filter(|chunk| chunk.starts_with(' '));
            assert!(at_spaces.count() + 4 >= all.len());
        }
    }

    #[test]
    fn whitespace_is_split_for_every_tokenizer() {
        let text = " ".repeat(200_000);
        assert_eq!(chunks(&text, SplitPoints::Nowhere, SOFT_LIMIT).count(), 4);
    }
}
