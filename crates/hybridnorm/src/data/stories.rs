//! Generated short stories in simple English: unlimited in number, without download.
//!
//! A story is a plot (something is lost, made, shared, nursed, feared, broken, learned or counted)
//! with a cast: a hero, a friend, a relative, an animal, a thing, a place. Details are consistent within
//! a story: the thing keeps its colour, the friend keeps the pronoun, numbers add up, the helping
//! animal is able to help. So there are dependencies to learn beyond the next word, and a small model
//! learns many of them within minutes.
//!
//! The text of story `index` of seed `seed` is the same on all platforms. All text is original.

mod cast;
mod plots;
mod words;

use std::fmt;
use std::str::FromStr;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

use crate::error::Error;

use cast::Cast;

/// Number of stories of the input `stories`.
const DEFAULT_COUNT: u64 = 10_000;
/// Generator version; changes when a seed generates different stories than before.
const VERSION: u32 = 1;

/// Specification of generated stories: `stories`, `stories:N` or `stories:N:SEED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stories {
    /// Number of stories: those with indices 0 to `count - 1`.
    pub count: u64,
    /// The seed.
    pub seed: u64,
}

impl FromStr for Stories {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || {
            Error::invalid_value(
                "input text",
                format!(
                    "`{text}` is not `stories`, `stories:N` or `stories:N:SEED` with N at least 1"
                ),
            )
        };
        let mut parts = text.split(':');
        if parts.next() != Some("stories") {
            return Err(invalid());
        }
        let mut number = |default| match parts.next() {
            None => Ok(default),
            Some(part) => part.parse().map_err(|_| invalid()),
        };
        let (count, seed) = (number(DEFAULT_COUNT)?, number(0)?);
        if count == 0 || parts.next().is_some() {
            return Err(invalid());
        }
        Ok(Self { count, seed })
    }
}

/// Writes the full specification and the generator version: equal for equal text.
impl fmt::Display for Stories {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "stories:{}:{} (version {VERSION})",
            self.count, self.seed
        )
    }
}

/// Returns story `index` of `seed`: one or more paragraphs, 100 to 200 words, without trailing newline.
pub fn story(seed: u64, index: u64) -> String {
    let mut rng = StoryRng::new(seed, index);
    let plot = rng.pick(plots::PLOTS);
    let cast = Cast::new(&mut rng);
    plot.paragraphs
        .iter()
        .map(|slots| {
            slots
                .iter()
                .map(|variants| cast.fill_sentence(rng.pick::<&str>(variants)))
                .filter(|sentence| !sentence.is_empty())
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect::<Vec<_>>()
        .join("\n\n")
}

/// Plot: paragraphs of slots, each with alternative sentences.
struct Plot {
    paragraphs: &'static [&'static [&'static [&'static str]]],
}

/// Random number generator of one story.
struct StoryRng(ChaCha8Rng);

impl StoryRng {
    fn new(seed: u64, index: u64) -> Self {
        let mut digest = Sha256::new();
        digest.update(format!("hybridnorm stories {VERSION} {seed} {index}"));
        Self(ChaCha8Rng::from_seed(digest.finalize().into()))
    }

    fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::io::Write as _;

    use super::*;

    fn words(text: &str) -> impl Iterator<Item = String> {
        text.split(|c: char| !c.is_alphabetic() && c != '\'')
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
    }

    #[test]
    fn stories_are_deterministic() {
        assert_eq!(story(7, 11), story(7, 11));
        assert_ne!(story(7, 11), story(7, 12));
        assert_ne!(story(7, 11), story(8, 11));
        // Any change of text requires a new VERSION and a new hash here.
        let all: String = (0..200).map(|i| story(0, i)).collect();
        assert_eq!(
            &crate::files::sha256(all.as_bytes())[..16],
            "93c8c118c437361a"
        );
    }

    #[test]
    fn story_lengths() {
        let lengths: Vec<_> = (0..5000).map(|i| words(&story(1, i)).count()).collect();
        assert!(
            lengths.iter().all(|n| (80..=220).contains(n)),
            "{:?}",
            lengths.iter().minmax()
        );
        let mean = lengths.iter().sum::<usize>() / lengths.len();
        assert!((100..=200).contains(&mean), "{mean}");
    }

    trait MinMax: Iterator {
        fn minmax(self) -> (Option<Self::Item>, Option<Self::Item>)
        where
            Self: Sized + Clone,
            Self::Item: Ord,
        {
            (self.clone().min(), self.max())
        }
    }
    impl<I: Iterator> MinMax for I {}

    #[test]
    fn placeholders_are_filled_and_sentences_are_well_formed() {
        for i in 0..5000 {
            let text = story(2, i);
            assert!(!text.contains(['{', '}', '_']), "{text}");
            assert!(!text.contains("  ") && !text.contains(" ."), "{text}");
            for paragraph in text.split("\n\n") {
                let first = paragraph.trim_start_matches('"').chars().next().unwrap();
                assert!(first.is_uppercase(), "{text}");
                assert!(paragraph.ends_with(['.', '!', '?', '"']), "{text}");
                assert_eq!(paragraph.matches('"').count() % 2, 0, "{text}");
            }
        }
    }

    #[test]
    fn articles_fit() {
        for i in 0..3000 {
            let words: Vec<_> = words(&story(3, i)).collect();
            for pair in words.windows(2) {
                let vowel = pair[1].starts_with(['a', 'e', 'i', 'o', 'u']);
                match pair[0].as_str() {
                    "an" => assert!(vowel || pair[1] == "hour", "{pair:?}"),
                    "a" => assert!(!vowel || pair[1] == "useful", "{pair:?}"),
                    _ => {}
                }
            }
        }
    }

    /// In a story whose hero, friend and relative are all of one gender, the other gender's
    /// pronouns never occur.
    #[test]
    fn pronouns_agree() {
        let (mut women, mut men, mut agreeing) = (0, 0, 0);
        for i in 0..4000 {
            let mut rng = StoryRng::new(4, i);
            rng.pick(plots::PLOTS);
            let cast = Cast::new(&mut rng);
            let text: HashSet<_> = words(&story(4, i)).collect();
            let any = |set: &[&str]| set.iter().any(|word| text.contains(*word));
            match cast.genders() {
                [true, true, true] => {
                    women += 1;
                    assert!(!any(&["he", "him", "his", "himself", "boy"]), "{text:?}");
                    agreeing += usize::from(any(&["she", "her"]));
                }
                [false, false, false] => {
                    men += 1;
                    assert!(!any(&["she", "her", "hers", "herself", "girl"]), "{text:?}");
                    agreeing += usize::from(any(&["he", "him", "his"]));
                }
                _ => {}
            }
        }
        assert!(women > 200 && men > 200, "{women} {men}");
        assert!(agreeing * 100 > (women + men) * 95, "{agreeing}");
    }

    #[test]
    fn diverse() {
        let mut whole = HashSet::new();
        let mut sentences = HashSet::new();
        let mut sentence_count = 0;
        let mut counts: HashMap<String, u32> = HashMap::new();
        for i in 0..10_000 {
            let text = story(5, i);
            for sentence in text.split_inclusive(['.', '!', '?']) {
                sentence_count += 1;
                sentences.insert(sentence.to_owned());
            }
            words(&text).for_each(|word| *counts.entry(word).or_default() += 1);
            whole.insert(text);
        }
        assert_eq!(whole.len(), 10_000);
        assert!(
            sentences.len() * 5 > sentence_count,
            "{} {sentence_count}",
            sentences.len()
        );
        let total: u32 = counts.values().sum();
        let bits: f64 = counts
            .values()
            .map(|&n| f64::from(n) / f64::from(total))
            .map(|p| -p * p.log2())
            .sum();
        assert!(counts.len() > 900, "{}", counts.len());
        assert!(bits > 7.5, "{bits}");
    }

    #[test]
    fn compression_ratio_is_limited() {
        let text: String = (0..2000).map(|i| story(6, i) + "\n").collect();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text.as_bytes()).unwrap();
        let ratio = text.len() as f64 / encoder.finish().unwrap().len() as f64;
        assert!(ratio < 6.0, "{ratio}");
    }

    #[test]
    fn specifications() {
        let of = |text: &str| text.parse::<Stories>().map(|s| (s.count, s.seed)).ok();
        assert_eq!(of("stories"), Some((DEFAULT_COUNT, 0)));
        assert_eq!(of("stories:5"), Some((5, 0)));
        assert_eq!(of("stories:5:9"), Some((5, 9)));
        for bad in [
            "stories:",
            "stories:0",
            "stories:x",
            "stories:1:",
            "stories:1:2:3",
            "story",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
