//! All kinds of tokenizers: continuation of a prompt, special tokens in text, disabled settings, names.

use hybridnorm::data::{Tokenizer, TokenizerSpec, quiet};
use serde_json::{Value, json};

fn tokenizer(file: &Value) -> Tokenizer {
    Tokenizer::from_json(file.to_string().into_bytes(), None).unwrap()
}

fn file(decoder: Value, model: Value) -> Value {
    json!({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": decoder, "model": model})
}

/// Returns a tokenizer that looks up tokens by name; only the decoder determines their text.
fn words(decoder: Value, tokens: &[&str]) -> Tokenizer {
    let mut vocab = json!({"</s>": 0, "?": 1});
    for (id, token) in (2..).zip(tokens) {
        vocab[token] = id.into();
    }
    let model = json!({"type": "WordLevel", "unk_token": "?", "vocab": vocab});
    tokenizer(&file(decoder, model))
}

fn streamed(tokenizer: &Tokenizer, context: &[u32], ids: &[u32]) -> String {
    let mut decoder = tokenizer.stream_decoder_with_context(context);
    let mut text: String = ids.iter().map(|&id| decoder.push(id)).collect();
    text.push_str(&decoder.finish());
    text
}

/// Returns a tokenizer for every kind of decoder.
fn decoders() -> Vec<(&'static str, Tokenizer)> {
    let space = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let llama = json!({"type": "Sequence", "decoders":
        [space, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]});
    let metaspace =
        json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"});
    let pieces = [
        "\u{2581}owls",
        "\u{2581}",
        "hoot",
        "\u{2581}by",
        "<0xF0>",
        "<0x9F>",
        "<0xA6>",
        "<0x89>",
    ];
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let wordpiece = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let ctc =
        json!({"type": "CTC", "pad_token": "-", "word_delimiter_token": "|", "cleanup": true});
    let byte_level_pieces = [
        "owls",
        "\u{120}hoot",
        "\u{f0}\u{141}",
        "\u{a6}\u{2030}",
        "\u{a6}\u{12b}",
    ];
    vec![
        ("Llama 2", words(llama, &pieces)),
        ("Metaspace", words(metaspace, &pieces[..4])),
        (
            "ByteFallback",
            words(json!({"type": "ByteFallback"}), &pieces),
        ),
        (
            "WordPiece",
            words(wordpiece, &["owl", "##s", "hoot", ".", "by"]),
        ),
        (
            "BPEDecoder",
            words(
                json!({"type": "BPEDecoder", "suffix": "</w>"}),
                &["owls</w>", "ho", "ot</w>", "by</w>"],
            ),
        ),
        ("CTC", words(ctc, &["o", "-", "l", "|", "w"])),
        ("ByteLevel", words(byte_level, &byte_level_pieces)),
        ("none", words(Value::Null, &["owls", "hoot", "by"])),
    ]
}

#[test]
fn streaming_decoder_continues_a_prompt() {
    let all = decoders();
    for (name, tokenizer) in &all {
        let ids = tokenizer.vocab_size() as u32;
        // Id sequences that include special, unknown and repeated ones.
        for seed in 0..60_u32 {
            let draw = |n: u32| (seed.wrapping_mul(2_654_435_761) ^ n.wrapping_mul(40_503)) >> 5;
            let sequence: Vec<u32> = (0..9).map(|n| draw(n * n + seed) % ids).collect();
            for at in 0..sequence.len() {
                let (before, after) = sequence.split_at(at);
                let prompt = tokenizer.decode(before);
                // A prompt does not end in an incomplete character.
                if prompt.contains('\u{fffd}') || tokenizer.decode(&sequence).contains('\u{fffd}') {
                    continue;
                }
                let joined = prompt + &streamed(tokenizer, before, after);
                assert_eq!(
                    joined,
                    tokenizer.decode(&sequence),
                    "{name} {sequence:?} {at}"
                );
            }
        }
    }
    let (_, llama) = &all[0];
    assert_eq!(streamed(llama, &[2], &[5, 4]), " byhoot");
    assert_eq!(streamed(llama, &[2], &[6, 7, 8, 9]), "\u{1f989}");
    // Three of four bytes: nothing until the end, then replacement characters.
    let mut decoder = llama.stream_decoder_with_context(&[2]);
    assert_eq!([6, 7, 8].map(|id| decoder.push(id)).concat(), "");
    assert_eq!(decoder.finish(), "\u{fffd}".repeat(3));
    // A broken character does not remove a complete one before it.
    assert_eq!(
        streamed(llama, &[], &[6, 7, 8, 9, 6, 4]),
        "\u{1f989}\u{fffd}hoot"
    );
}

fn special(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true})
}

const LITERAL_SPECIAL_TOKENS: [&str; 6] = [
    "red </s> kite",
    "</s>",
    "</s></s>",
    "red</s>kite <pad> </s >",
    "\u{2581}</s>",
    "<pad></s> kite\n</s>",
];

/// Returns models whose vocabulary contains special tokens, with their pre-tokenizers.
fn models() -> Vec<(&'static str, Value, Value)> {
    let split = json!({"type": "Whitespace"});
    let metaspace =
        json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"});
    let unigram = |letters: &str| {
        let mut vocab = json!([
            ["?", 0.0],
            ["</s>", 0.0],
            ["<pad>", 0.0],
            ["\u{2581}", -2.0]
        ]);
        let vocab_list = vocab.as_array_mut().unwrap();
        vocab_list.extend(letters.chars().map(|c| json!([c.to_string(), -3.0])));
        json!({"type": "Unigram", "unk_id": 0, "vocab": vocab})
    };
    let letters = "redkit<>/spa\n ";
    let mut bpe_vocab = json!({"?": 0, "</s>": 1, "<pad>": 2, "</": 3, "s>": 4});
    for (id, c) in (5..).zip(letters.chars()) {
        bpe_vocab[c.to_string()] = id.into();
    }
    let bpe = json!({"type": "BPE", "unk_token": "?", "vocab": bpe_vocab, "merges":
        ["< /", "s >", "</ s>"]});
    let mut ignoring = bpe.clone();
    ignoring["ignore_merges"] = true.into();
    ignoring["merges"] = json!([["<", "/"]]);
    let vocab = json!({"?": 0, "</s>": 1, "<pad>": 2, "red": 3, "kite": 4, "\u{2581}</s>": 5});
    let level = json!({"type": "WordLevel", "unk_token": "?", "vocab": vocab});
    let mut wordpiece = level.clone();
    wordpiece["type"] = "WordPiece".into();
    wordpiece["continuing_subword_prefix"] = "##".into();
    wordpiece["max_input_chars_per_word"] = 100.into();
    let whitespace = json!({"type": "WhitespaceSplit"});
    vec![
        ("Unigram", unigram(letters), metaspace.clone()),
        ("Unigram without the letters", unigram("redkit"), metaspace),
        ("Unigram without words", unigram(letters), Value::Null),
        ("BPE", bpe.clone(), Value::Null),
        ("BPE by words", bpe, split),
        ("BPE that looks words up", ignoring, whitespace.clone()),
        ("WordLevel", level, whitespace.clone()),
        ("WordPiece", wordpiece, whitespace),
    ]
}

#[test]
fn text_is_never_encoded_as_special_tokens() {
    for (name, model, pre_tokenizer) in models() {
        for declared in [true, false] {
            let mut json = file(Value::Null, model.clone());
            json["pre_tokenizer"] = pre_tokenizer.clone();
            if declared {
                json["added_tokens"] =
                    json!([special(0, "?"), special(1, "</s>"), special(2, "<pad>")]);
            }
            let tokenizer = tokenizer(&json);
            for text in LITERAL_SPECIAL_TOKENS {
                let ids = tokenizer.encode(text).unwrap();
                assert!(!ids.contains(&1), "{name} {declared} {text}: {ids:?}");
                assert!(!declared || !ids.contains(&2), "{name} {text}: {ids:?}");
                assert!(!ids.is_empty(), "{name} {text}");
            }
            // Other text and following texts are not affected.
            let plain = tokenizer.encode("red kite").unwrap();
            let mixed = tokenizer.encode("red kite </s>").unwrap();
            assert_eq!(mixed[..plain.len()], plain, "{name}");
            assert_eq!(tokenizer.encode("red kite").unwrap(), plain, "{name}");
        }
    }
}

#[test]
fn literal_eos_text_survives_if_encodable() {
    let mut vocab = json!({"</s>": 0, "?": 1, "</": 2});
    for (id, c) in (3..).zip("a</s> ".chars()) {
        vocab[c.to_string()] = id.into();
    }
    let model = json!({"type": "BPE", "unk_token": "?", "ignore_merges": true, "vocab": vocab,
        "merges": ["< /"]});
    let tokenizer = tokenizer(&file(json!({"type": "Fuse"}), model));
    let ids = tokenizer.encode("</s>").unwrap();
    assert_eq!(tokenizer.decode(&ids), "</s>");
    assert_eq!(ids.len(), 3);
}

#[test]
fn eos_that_is_unk_or_an_ordinary_added_token() {
    let vocab = json!({"</s>": 0, "red": 1});
    let model = json!({"type": "WordLevel", "unk_token": "</s>", "vocab": vocab});
    let mut json = file(Value::Null, model);
    json["pre_tokenizer"] = json!({"type": "WhitespaceSplit"});
    let unknown = tokenizer(&json);
    assert_eq!(unknown.encode("red red").unwrap(), [1, 1]);
    let error = unknown.encode("red kite").unwrap_err().to_string();
    assert!(
        error.contains("special tokens") || error.contains("nknown") || error.contains("UNK"),
        "{error}"
    );

    let mut end = special(2, "</s>");
    end["special"] = false.into();
    let vocab = json!({"?": 0, "red": 1});
    let model = json!({"type": "WordLevel", "unk_token": "?", "vocab": vocab});
    let mut json = file(Value::Null, model);
    json["pre_tokenizer"] = json!({"type": "WhitespaceSplit"});
    json["added_tokens"] = json!([end]);
    let ordinary = tokenizer(&json);
    assert_eq!(ordinary.eos_id(), 2);
    assert_eq!(ordinary.encode("red </s> red").unwrap(), [1, 0, 1]);
}

#[test]
fn dropout_truncation_and_padding_are_disabled_and_noted() {
    let mut vocab = json!({"</s>": 0, "?": 1});
    for (id, token) in (2..).zip(["a", "b", "ab", "abab", "\u{2581}"]) {
        vocab[token] = id.into();
    }
    let model = json!({"type": "BPE", "unk_token": "?", "dropout": 0.5, "vocab": vocab,
        "merges": ["a b", "ab ab"]});
    let mut json = file(Value::Null, model);
    json["truncation"] =
        json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "</s>"});
    json["post_processor"] = json!({"type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]});
    let with_dropout = tokenizer(&json);
    let text = "ab".repeat(100);
    let ids = with_dropout.encode(&text).unwrap();
    assert_eq!(ids, [5; 50]);
    for _ in 0..20 {
        assert_eq!(with_dropout.encode(&text).unwrap(), ids);
    }
    let notes = with_dropout.notes().join("\n");
    for word in ["dropout of 0.5", "truncation to 3 tokens", "padding"] {
        assert!(notes.contains(word), "{notes}");
    }
    assert_eq!(with_dropout.record().notes, with_dropout.notes());
    // A literal special token in the text does not re-enable them.
    let with_literal = with_dropout.encode(&format!("{text}</s>")).unwrap();
    assert_eq!(with_literal[..50], ids);
    json["model"]["unk_token"] = Value::Null;
    let dropping = tokenizer(&json).notes().join("\n");
    assert!(dropping.contains("has no unknown token"), "{dropping}");
    assert!(Tokenizer::r50k().notes().is_empty());
}

#[test]
fn unknown_tokenizer_names_list_known_ones() {
    let named = |name: &str| Tokenizer::from_spec(&name.parse::<TokenizerSpec>().unwrap());
    for (name, expected) in [
        ("gpt2", Tokenizer::r50k()),
        ("GPT-2", Tokenizer::r50k()),
        ("r50k_base", Tokenizer::r50k()),
        ("cl100k-base", Tokenizer::cl100k()),
        ("gpt4", Tokenizer::cl100k()),
        ("byte", Tokenizer::bytes()),
    ] {
        assert_eq!(named(name).unwrap().record(), expected.record(), "{name}");
    }
    let error = named("gpt5").unwrap_err().to_string();
    for word in ["`gpt5`", "bytes, r50k (also gpt2)", "cl100k", "bpe:N"] {
        assert!(error.contains(word), "{error}");
    }
    let error = "bpe".parse::<TokenizerSpec>().unwrap_err().to_string();
    assert!(error.contains("bpe:4096"), "{error}");
}

#[test]
fn long_documents_are_encoded_in_chunks() {
    let line = "The kites  of May, 12 of them;\n\tan owl's nest \u{1f989}. ";
    let text = line.repeat(30_000);
    let bpe = Tokenizer::train_bpe(&[line, line], 300, &mut quiet).unwrap();
    for tokenizer in [
        Tokenizer::bytes(),
        Tokenizer::r50k(),
        Tokenizer::cl100k(),
        bpe,
    ] {
        let ids = tokenizer.encode(&text).unwrap();
        assert!(tokenizer.decode(&ids) == text, "{tokenizer:?}");
        // The first line has no space before it.
        let one = tokenizer.encode(line).unwrap();
        let two = tokenizer.encode(&line.repeat(2)).unwrap();
        let expected = one.len() + 29_999 * (two.len() - one.len());
        assert_eq!(ids.len(), expected, "{tokenizer:?}");
    }
    let unbroken = Tokenizer::train_bpe(&["ab".repeat(100_000).as_str()], 262, &mut quiet).unwrap();
    let text = "ab".repeat(2_000_000);
    assert!(unbroken.decode(&unbroken.encode(&text).unwrap()) == text);
}

#[test]
fn long_indivisible_text_is_rejected() {
    let model = json!({"type": "BPE", "unk_token": "?", "merges": [],
        "vocab": {"?": 0, "</s>": 1, "a": 2}});
    let mut json = file(Value::Null, model);
    json["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "a(?=b)"},
        "behavior": "Isolated", "invert": false});
    let tokenizer = tokenizer(&json);
    assert_eq!(
        tokenizer.encode(&"a".repeat(1 << 20)).unwrap().len(),
        1 << 20
    );
    let error = tokenizer
        .encode(&"a".repeat((1 << 20) + 5))
        .unwrap_err()
        .to_string();
    assert!(error.contains("1048581 bytes"), "{error}");
}
