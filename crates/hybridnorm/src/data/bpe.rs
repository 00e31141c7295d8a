//! Byte-level byte-pair encoding: training, and `tokenizer.json` files for byte-level vocabularies.
//!
//! The method is that of Sennrich, Haddow and Birch (arXiv 1508.07909) on bytes, as in GPT-2: text
//! is split into words by GPT-2's pattern, and the most frequent adjacent pair of tokens within words is
//! merged repeatedly. Ties go to the pair with the smaller ids, and words are visited in sorted order, so
//! the same text yields the same file for any number of threads.
//!
//! A word of more than 64 KiB, such as a text without whitespace, counts as several words of up to
//! 64 KiB. Besides the current text, memory holds each distinct word once: its bytes, four bytes for
//! each of them while merges are learned, and about 200 bytes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use tokenizers::utils::SysRegex;

use crate::error::{Error, Result};

use super::tokenizer::{SOFT_LIMIT, SplitPoints, chunks, in_parallel};
use super::{Progress, ProgressFn};

/// The special token that ends every document.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Id of the end-of-text token in vocabularies trained here: right after the 256 bytes.
pub const END_OF_TEXT_ID: u32 = 256;
/// Minimum count of a pair to be merged.
const MIN_COUNT: i64 = 2;

/// Maximum length of a word in bytes; longer ones are counted in parts.
const MAX_WORD_LEN: usize = 64 << 10;

/// GPT-2's pre-tokenization pattern.
const GPT2_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

type Pair = (u32, u32);

/// Trainer that counts words, then learns merges from them.
pub struct BpeTrainer {
    vocab_size: usize,
    words: SysRegex,
    counts: HashMap<String, u64>,
}

impl BpeTrainer {
    /// Returns a trainer for vocabularies of at most `vocab_size` tokens, including the 256 bytes and
    /// the end-of-text token.
    ///
    /// # Errors
    /// If `vocab_size` is below 257 or above 1,000,000.
    pub fn new(vocab_size: usize) -> Result<Self> {
        if !(257..=1_000_000).contains(&vocab_size) {
            return Err(Error::out_of_range(
                "vocabulary size of bpe",
                vocab_size,
                "257 to 1000000",
            ));
        }
        let words = SysRegex::new(GPT2_PATTERN).expect("the pattern is valid");
        Ok(Self {
            vocab_size,
            words,
            counts: HashMap::new(),
        })
    }

    /// Counts the words of these texts.
    pub fn feed(&mut self, texts: &[&str], threads: usize) {
        let words = &self.words;
        let counted = in_parallel(texts, threads, |text| {
            let mut counts: HashMap<&str, u64> = HashMap::new();
            for chunk in chunks(text, SplitPoints::BeforeSpacesOrAtLimit, SOFT_LIMIT) {
                for (from, to) in words.find_iter(chunk) {
                    let mut word = &chunk[from..to];
                    while word.len() > MAX_WORD_LEN {
                        let (part, rest) = word.split_at(word.floor_char_boundary(MAX_WORD_LEN));
                        *counts.entry(part).or_default() += 1;
                        word = rest;
                    }
                    *counts.entry(word).or_default() += 1;
                }
            }
            counts
        });
        for counts in counted {
            for (word, count) in counts {
                match self.counts.get_mut(word) {
                    Some(sum) => *sum += count,
                    None => {
                        self.counts.insert(word.to_owned(), count);
                    }
                }
            }
        }
    }

    /// Learns the merges and returns the `tokenizer.json` text. The vocabulary is smaller than requested if no
    /// remaining pair occurs at least twice.
    pub fn finish(self, progress: ProgressFn) -> String {
        let mut words: Vec<_> = self.counts.into_iter().collect();
        words.sort_unstable();
        let mut state = Merger::new(words);
        let n_merges = self.vocab_size - 257;
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        tokens.push(END_OF_TEXT.into());
        let mut known: HashSet<Vec<u8>> = tokens.iter().cloned().collect();
        let mut merges = Vec::new();
        while tokens.len() < self.vocab_size {
            let Some(pair) = state.most_frequent() else {
                break;
            };
            let joined = [
                tokens[pair.0 as usize].as_slice(),
                tokens[pair.1 as usize].as_slice(),
            ]
            .concat();
            // A second merge into an existing token would be ranked differently by encoders than by this
            // loop; such a pair stays two tokens.
            if !known.insert(joined.clone()) {
                state.pairs.remove(&pair);
                continue;
            }
            let id = tokens.len() as u32;
            tokens.push(joined);
            state.merge(pair, id);
            merges.push(pair);
            if merges.len() % 64 == 0 {
                progress(Progress {
                    stage: "learn merges",
                    done: tokens.len() as u64 - 257,
                    total: Some(n_merges as u64),
                    unit: "merges",
                });
            }
        }
        progress(Progress {
            stage: "learn merges",
            done: tokens.len() as u64 - 257,
            total: Some(tokens.len() as u64 - 257),
            unit: "merges",
        });
        let split = PreTokenizer::Gpt2;
        tokenizer_json(&tokens, &merges, &[END_OF_TEXT_ID], split)
    }
}

struct Merger {
    words: Vec<Vec<u32>>,
    word_counts: Vec<i64>,
    pairs: HashMap<Pair, Occurrences>,
    /// Counts at the time of pushing; checked against `pairs` when popped.
    queue: BinaryHeap<(i64, Reverse<Pair>)>,
}

#[derive(Default)]
struct Occurrences {
    count: i64,
    /// Words that have or had the pair.
    words: Vec<u32>,
}

impl Merger {
    fn new(counts: Vec<(String, u64)>) -> Self {
        // Each string is freed when its word is converted.
        let (words, word_counts): (Vec<Vec<u32>>, Vec<i64>) = counts
            .into_iter()
            .map(|(word, count)| {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                (word.bytes().map(u32::from).collect(), count)
            })
            .unzip();
        let mut pairs: HashMap<Pair, Occurrences> = HashMap::new();
        for (index, (word, word_count)) in (0..).zip(words.iter().zip(&word_counts)) {
            for pair in word.windows(2) {
                let entry = pairs.entry((pair[0], pair[1])).or_default();
                entry.count += word_count;
                if entry.words.last() != Some(&index) {
                    entry.words.push(index);
                }
            }
        }
        let queue = pairs
            .iter()
            .map(|(&pair, entry)| (entry.count, Reverse(pair)))
            .collect();
        Self {
            words,
            word_counts,
            pairs,
            queue,
        }
    }

    fn most_frequent(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.queue.pop() {
            let now = self.pairs.get(&pair).map_or(0, |entry| entry.count);
            if now == count && now >= MIN_COUNT {
                return Some(pair);
            }
            if now >= MIN_COUNT && now < count {
                self.queue.push((now, Reverse(pair)));
            }
        }
        None
    }

    fn merge(&mut self, pair: Pair, id: u32) {
        let mut affected = self.pairs.remove(&pair).unwrap_or_default().words;
        affected.sort_unstable();
        affected.dedup();
        let mut grown = HashSet::new();
        for index in affected {
            let word = &mut self.words[index as usize];
            let merged = replace(word, pair, id);
            if merged.len() == word.len() {
                continue;
            }
            let word_count = self.word_counts[index as usize];
            for old in word.windows(2) {
                if let Some(entry) = self.pairs.get_mut(&(old[0], old[1])) {
                    entry.count -= word_count;
                }
            }
            for new in merged.windows(2) {
                let new = (new[0], new[1]);
                let entry = self.pairs.entry(new).or_default();
                entry.count += word_count;
                if new.0 == id || new.1 == id {
                    if entry.words.last() != Some(&index) {
                        entry.words.push(index);
                    }
                    grown.insert(new);
                }
            }
            *word = merged;
        }
        for pair in grown {
            let count = self.pairs[&pair].count;
            self.queue.push((count, Reverse(pair)));
        }
    }
}

fn replace(word: &[u32], pair: Pair, id: u32) -> Vec<u32> {
    let mut merged = Vec::with_capacity(word.len());
    let mut i = 0;
    while i < word.len() {
        if word[i] == pair.0 && word.get(i + 1) == Some(&pair.1) {
            merged.push(id);
            i += 2;
        } else {
            merged.push(word[i]);
            i += 1;
        }
    }
    merged
}

/// Pre-tokenizer of a `tokenizer.json`.
#[derive(Debug, Clone, Copy)]
pub(super) enum PreTokenizer<'p> {
    /// Splits by GPT-2's pattern.
    Gpt2,
    /// Splits by this pattern.
    Pattern(&'p str),
    /// Does not split.
    None,
}

/// Returns a `tokenizer.json` for byte-level tokens: `tokens[id]` are the bytes of each token (empty:
/// no such id), `merges` pairs of ids in order, `special` the ids of special tokens.
pub(super) fn tokenizer_json(
    tokens: &[Vec<u8>],
    merges: &[Pair],
    special: &[u32],
    split: PreTokenizer,
) -> String {
    let chars = byte_chars();
    let token_text = |id: u32| -> String {
        let bytes = &tokens[id as usize];
        if special.contains(&id) {
            String::from_utf8_lossy(bytes).into_owned()
        } else {
            bytes.iter().map(|&b| chars[usize::from(b)]).collect()
        }
    };
    let added = special.iter().map(|&id| {
        format!(
            r#"    {{"id": {id}, "content": {}, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}}"#,
            quoted(&token_text(id))
        )
    });
    let vocab = (0..tokens.len() as u32)
        .filter(|&id| !tokens[id as usize].is_empty())
        .map(|id| format!("      {}: {id}", quoted(&token_text(id))));
    let merges = merges.iter().map(|&(a, b)| {
        let pair = format!("{} {}", token_text(a), token_text(b));
        format!("      {}", quoted(&pair))
    });
    fill_template(
        &joined_lines(added),
        &pre_tokenizer_json(split),
        &joined_lines(vocab),
        &joined_lines(merges),
    )
}

fn joined_lines(lines: impl Iterator<Item = String>) -> String {
    lines.collect::<Vec<_>>().join(",\n")
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn byte_level_json(use_regex: bool) -> String {
    format!(
        r#"{{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": {use_regex}}}"#
    )
}

fn pre_tokenizer_json(split: PreTokenizer) -> String {
    match split {
        PreTokenizer::Gpt2 => byte_level_json(true),
        PreTokenizer::None => byte_level_json(false),
        PreTokenizer::Pattern(pattern) => format!(
            r#"{{"type": "Sequence", "pretokenizers": [{{"type": "Split", "pattern": {{"Regex": {}}}, "behavior": "Isolated", "invert": false}}, {}]}}"#,
            quoted(pattern),
            byte_level_json(false)
        ),
    }
}

/// Returns the text of a `tokenizer.json` with these added tokens, pre-tokenizer, vocabulary and merges.
fn fill_template(added: &str, pre_tokenizer: &str, vocab: &str, merges: &str) -> String {
    format!(
        r#"{{
  "version": "1.0",
  "truncation": null,
  "padding": null,
  "added_tokens": [
{added}
  ],
  "normalizer": null,
  "pre_tokenizer": {pre_tokenizer},
  "post_processor": null,
  "decoder": {decoder},
  "model": {{
    "type": "BPE",
    "dropout": null,
    "unk_token": null,
    "continuing_subword_prefix": null,
    "end_of_word_suffix": null,
    "fuse_unk": false,
    "byte_fallback": false,
    "ignore_merges": false,
    "vocab": {{
{vocab}
    }},
    "merges": [
{merges}
    ]
  }}
}}
"#,
        decoder = byte_level_json(true),
    )
}

/// Returns the printable character for each byte in byte-level vocabularies: the byte itself if
/// printable in Latin-1, else the next unused one from U+0100 on (GPT-2's table).
pub(super) fn byte_chars() -> [char; 256] {
    let mut next = 256_u32;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
        }
    })
}
