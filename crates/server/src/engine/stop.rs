//! Stop strings in text that arrives in pieces.

/// Search for the first stop string in a text. Text that may be the beginning of a stop string is held back.
#[derive(Debug, Default)]
pub(super) struct StopMatcher {
    strings: Vec<String>,
    held: String,
    is_stopped: bool,
}

impl StopMatcher {
    /// Creates a matcher; empty strings match nothing.
    pub(super) fn new(strings: Vec<String>) -> Self {
        Self {
            strings: strings
                .into_iter()
                .filter(|stop| !stop.is_empty())
                .collect(),
            ..Self::default()
        }
    }

    /// True after a stop string was found.
    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Takes the next piece; returns the text that precedes any stop string, as far as that is known.
    pub(super) fn push(&mut self, piece: &str) -> String {
        if self.is_stopped {
            return String::new();
        }
        self.held.push_str(piece);
        let first = self
            .strings
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min();
        if let Some(at) = first {
            self.is_stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let kept = self.held.len() - self.possible_beginning();
        let rest = self.held.split_off(kept);
        std::mem::replace(&mut self.held, rest)
    }

    /// Returns the text that is held back, at the end of the text.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Returns the length of the longest end of the held text with which a stop string begins.
    fn possible_beginning(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |stop: &String| {
            let stop = stop.as_bytes();
            let most = (stop.len() - 1).min(held.len());
            (1..=most).rev().find(|&len| held.ends_with(&stop[..len]))
        };
        self.strings.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut text: String = pieces.iter().map(|piece| matcher.push(piece)).collect();
        text.push_str(&matcher.finish());
        (text, matcher.is_stopped())
    }

    #[test]
    fn text_ends_before_the_first_stop_string() {
        assert_eq!(
            run(&["\n\n"], &["a\n", "b\n", "\nc"]),
            ("a\nb".into(), true)
        );
        assert_eq!(run(&["xyz", "y"], &["axy"]), ("ax".into(), true));
        assert_eq!(run(&["ab"], &["a", "a", "b"]), ("a".into(), true));
        assert_eq!(run(&["é"], &["caf", "é!"]), ("caf".into(), true));
        assert_eq!(run(&["stop"], &["st", "o"]), ("sto".into(), false));
        assert_eq!(run(&[""], &["a"]), ("a".into(), false));
    }

    #[test]
    fn a_possible_stop_string_is_held_back() {
        let mut matcher = StopMatcher::new(vec!["END".into()]);
        assert_eq!(matcher.push("the EN"), "the ");
        assert_eq!(matcher.push("TER"), "ENTER");
        assert_eq!(matcher.push(" END"), " ");
        assert!(matcher.is_stopped());
        assert_eq!(matcher.push("x"), "");
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[abé]{0,20}", stops in prop::collection::vec("[abé]{1,4}", 0..3), cuts in prop::collection::vec(0usize..20, 0..6)) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let chars: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < chars.len()).collect();
            cuts.extend([0, chars.len()]);
            cuts.sort_unstable();
            let pieces: Vec<String> = cuts.windows(2).map(|ends| chars[ends[0]..ends[1]].iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let end = stops.iter().filter_map(|stop| text.find(stop)).min();
            let (found, is_stopped) = run(&stops, &pieces);
            prop_assert_eq!(is_stopped, end.is_some());
            // The string that is complete first ends the text, which may begin later than another.
            prop_assert!(text.starts_with(&found));
            if end.is_none() {
                prop_assert_eq!(found, text);
            }
        }
    }
}
