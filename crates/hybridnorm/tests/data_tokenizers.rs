//! Tokenizers: round trips, determinism, corrupt files, saving and loading.

use std::fs;

use hybridnorm::data::{Progress, Tokenizer, TokenizerSpec, quiet, story};
use proptest::prelude::*;

fn stories(n: u64) -> Vec<String> {
    (0..n).map(|i| story(1, i)).collect()
}

fn bpe(vocab_size: usize) -> Tokenizer {
    let texts = stories(300);
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    Tokenizer::train_bpe(&texts, vocab_size, &mut quiet).unwrap()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut decoder = tokenizer.stream_decoder();
    let mut text: String = ids.iter().map(|&id| decoder.push(id)).collect();
    text.push_str(&decoder.finish());
    text
}

const SAMPLES: &[&str] = &[
    "",
    " ",
    "Hello, world!",
    "naïve café – “quotes”",
    "日本語とEmoji 🦉👩‍👩‍👧",
    "<|endoftext|>",
    "tabs\tand\r\nlines\n\n\n  spaces   ",
    "\u{0}\u{1}\u{fffd}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

#[test]
fn decoding_inverts_encoding() {
    for tokenizer in [
        Tokenizer::bytes(),
        Tokenizer::r50k(),
        Tokenizer::cl100k(),
        bpe(512),
    ] {
        for text in SAMPLES {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(&tokenizer.decode(&ids), text, "{tokenizer:?}");
            assert_eq!(&streamed(&tokenizer, &ids), text, "{tokenizer:?}");
            assert!(!ids.contains(&tokenizer.eos_id()), "{text} {tokenizer:?}");
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        }
    }
}

#[test]
fn stream_decoder_returns_complete_characters() {
    let tokenizer = Tokenizer::bytes();
    let mut decoder = tokenizer.stream_decoder();
    let owl = "🦉".as_bytes();
    for &byte in &owl[..3] {
        assert_eq!(decoder.push(byte.into()), "");
    }
    assert_eq!(decoder.push(owl[3].into()), "🦉");
    assert_eq!(decoder.push(0xff), "\u{fffd}");
    assert_eq!(decoder.push(owl[0].into()), "");
    assert_eq!(decoder.push(b'x'.into()), "\u{fffd}x");
    assert_eq!(decoder.push(owl[0].into()), "");
    assert_eq!(decoder.finish(), "\u{fffd}");
}

#[test]
fn unknown_ids_do_not_panic() {
    for tokenizer in [Tokenizer::bytes(), Tokenizer::cl100k(), bpe(300)] {
        for id in [256, 100_256, 100_270, 1 << 20, u32::MAX] {
            assert!(!tokenizer.decode(&[id]).is_empty());
        }
        assert_eq!(tokenizer.decode(&[tokenizer.eos_id()]), "<|endoftext|>");
    }
}

#[test]
fn training_is_deterministic_and_bounded() {
    let texts = stories(200);
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut last = 0;
    let mut on_progress = |progress: Progress| last = progress.done;
    let first = Tokenizer::train_bpe(&texts, 1000, &mut on_progress).unwrap();
    assert_eq!(last, 1000 - 257);
    let second = Tokenizer::train_bpe(&texts, 1000, &mut quiet).unwrap();
    assert_eq!(first.to_json(), second.to_json());
    assert_eq!(first.fingerprint(), second.fingerprint());
    assert_eq!(first.vocab_size(), 1000);
    assert_eq!(first.name(), "bpe:1000");
    // A short text has few pairs that occur twice.
    let small = Tokenizer::train_bpe(&["abcabc abcabc"], 5000, &mut quiet).unwrap();
    assert_eq!(small.vocab_size(), 257 + 3);
    let none = Tokenizer::train_bpe(&[], 5000, &mut quiet).unwrap();
    assert_eq!(none.vocab_size(), 257);
}

#[test]
fn bpe_learns_frequent_words() {
    let tokenizer = bpe(2000);
    let text = story(1, 999);
    let ids = tokenizer.encode(&text).unwrap();
    let bytes_per_token = text.len() as f64 / ids.len() as f64;
    assert!(bytes_per_token > 3.5, "{bytes_per_token}");
}

#[test]
fn tokens_do_not_depend_on_threads() {
    let texts = stories(50);
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for tokenizer in [Tokenizer::r50k(), bpe(512)] {
        let one = tokenizer.encode_batch(&texts, 1).unwrap();
        assert_eq!(one, tokenizer.encode_batch(&texts, 4).unwrap());
        assert_eq!(one, tokenizer.encode_batch(&texts, 0).unwrap());
    }
}

#[test]
fn saved_and_loaded() {
    for tokenizer in [
        Tokenizer::bytes(),
        Tokenizer::r50k(),
        Tokenizer::cl100k(),
        bpe(400),
    ] {
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path()).unwrap();
        let loaded = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(loaded.record(), tokenizer.record());
        // Other programs read tokenizer.json alone.
        let other = Tokenizer::load(folder.path().join("tokenizer.json")).unwrap();
        assert_eq!(other.vocab_size(), tokenizer.vocab_size());
        assert_eq!(other.eos_id(), tokenizer.eos_id());
        for text in SAMPLES.iter().copied().chain([story(3, 3).as_str()]) {
            assert_eq!(other.encode(text).unwrap(), tokenizer.encode(text).unwrap());
        }
        // A changed tokenizer file is detected.
        if tokenizer.name().starts_with("bpe") {
            let path = folder.path().join("tokenizer.json");
            fs::write(&path, bpe(300).to_json()).unwrap();
            let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
            assert!(error.contains("changed since it was saved"), "{error}");
        }
    }
}

#[test]
fn errors_of_corrupted_files_are_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let whole = bpe(300).to_json();
    let cut = &whole[..whole.len() / 2];
    for bad in [
        b"".as_slice(),
        b"{}",
        b"[1]",
        b"\xff\xfe",
        cut,
        b"{\"model\": 3}",
    ] {
        fs::write(&path, bad).unwrap();
        let error = Tokenizer::load(&path).unwrap_err().to_string();
        assert!(
            error.contains("tokenizer.json: not a tokenizer: "),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1);
    }
    let error = Tokenizer::load(folder.path().join("none")).unwrap_err();
    assert!(error.to_string().ends_with("no such file or folder"));
    fs::remove_file(&path).unwrap();
    let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("no tokenizer.json in this folder"),
        "{error}"
    );
}

#[test]
fn end_of_text_token() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let json = String::from_utf8(bpe(300).to_json()).unwrap();
    fs::write(&path, json.replace("<|endoftext|>", "<stop>")).unwrap();
    let error = Tokenizer::load(&path).unwrap_err().to_string();
    assert!(error.contains("no end-of-text token"), "{error}");
    let config = folder.path().join("tokenizer_config.json");
    fs::write(
        &config,
        r#"{"eos_token": {"content": "<stop>", "special": true}}"#,
    )
    .unwrap();
    let loaded = Tokenizer::load(&path).unwrap();
    assert_eq!(loaded.decode(&[loaded.eos_id()]), "<stop>");
    fs::write(&config, r#"{"eos_token": "<other>"}"#).unwrap();
    let error = Tokenizer::load(&path).unwrap_err().to_string();
    assert!(
        error.contains("eos_token `<other>` is not in the vocabulary"),
        "{error}"
    );
    fs::write(&config, "{").unwrap();
    assert!(Tokenizer::load(&path).is_err());
}

#[test]
fn specifications() {
    let parse = |text: &str| text.parse::<TokenizerSpec>();
    for text in ["bytes", "r50k", "cl100k", "bpe:4096", "some/tokenizer.json"] {
        assert_eq!(parse(text).unwrap().to_string(), text);
    }
    for bad in ["", "bpe:", "bpe:x", "bpe:256", "bpe:99999999"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    let error = Tokenizer::from_spec(&parse("gpt3").unwrap()).unwrap_err();
    assert!(
        error.to_string().contains("expected bytes, r50k"),
        "{error}"
    );
    let error = Tokenizer::from_spec(&parse("bpe:300").unwrap()).unwrap_err();
    assert!(error.to_string().contains("trained"), "{error}");
}

#[test]
fn long_runs_of_one_character() {
    let runs = [
        "a".repeat(300_000),
        " ".repeat(1_500_000) + "x",
        "\n".repeat(300_000),
        "!".repeat(300_000),
        "7".repeat(300_000),
        "é".repeat(200_000),
    ];
    for tokenizer in [Tokenizer::r50k(), Tokenizer::cl100k(), bpe(300)] {
        for run in &runs {
            let ids = tokenizer.encode(run).unwrap();
            assert!(
                tokenizer.decode(&ids) == *run,
                "{tokenizer:?} {:?}",
                &run[..4]
            );
        }
    }
    Tokenizer::train_bpe(&[runs[0].as_str(), &runs[1]], 300, &mut quiet).unwrap();
}

#[test]
fn vocabularies_that_are_not_byte_level() {
    let json = r#"{"version": "1.0", "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "<unk>",
                  "vocab": {"<unk>": 0, "</s>": 1, "red": 2, "kite": 3, "é": 4}}}"#;
    let tokenizer = Tokenizer::from_json(json.into(), None).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos_id()), (5, 1));
    let ids = tokenizer.encode("red kite blue é").unwrap();
    assert_eq!(ids, [2, 3, 0, 4]);
    assert_eq!(tokenizer.decode(&ids), "red kite <unk> é");
    assert_eq!(streamed(&tokenizer, &ids), "red kite <unk> é");
    assert_eq!(tokenizer.decode(&[77]), "");
}

thread_local!(static BPE: Tokenizer = bpe(600));

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn encoding_round_trips_any_text(text in any::<String>()) {
        let bpe = BPE.with(Clone::clone);
        for tokenizer in [Tokenizer::bytes(), Tokenizer::r50k(), Tokenizer::cl100k(), bpe] {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(&tokenizer.decode(&ids), &text);
            prop_assert_eq!(&streamed(&tokenizer, &ids), &text);
        }
    }

    #[test]
    fn streaming_decoder_equals_decode(ids in prop::collection::vec(0..700_u32, 0..30)) {
        for tokenizer in [Tokenizer::bytes(), Tokenizer::r50k(), BPE.with(Clone::clone)] {
            prop_assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids));
        }
    }

    #[test]
    fn corrupt_tokenizers_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut json = BPE.with(Tokenizer::to_json);
        let at = at.index(json.len());
        json[at] = byte;
        if let Ok(tokenizer) = Tokenizer::from_json(json, None) {
            let ids = tokenizer.encode("The red kite.").unwrap_or_default();
            tokenizer.decode(&ids);
        }
    }
}
