//! Helpers for `tokenizer.json` files: their configuration, the bytes of tokens, and files for tiktoken vocabularies.

use std::collections::HashMap;

use tiktoken_rs::CoreBPE;

use crate::data::bpe::{self, PreTokenizer};

use super::{Builtin, ChatTemplate};

/// Returns the `tokenizer_config.json` of a saved tokenizer, for Hugging Face tools.
pub(super) fn saved_config(
    eos: &str,
    bos: Option<&str>,
    chat: Option<&ChatTemplate>,
) -> serde_json::Value {
    let mut config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        "clean_up_tokenization_spaces": false,
    });
    if let Some(chat) = chat {
        config["chat_template"] = chat.template.clone().into();
    }
    let of_template = chat.map(|chat| chat.bos_token.as_str());
    if let Some(bos) = bos.or(of_template).filter(|bos| !bos.is_empty()) {
        config["bos_token"] = bos.into();
    }
    config
}

pub(super) fn byte_table(vocab: &HashMap<String, u32>, vocab_size: usize) -> Vec<Vec<u8>> {
    let bytes: HashMap<char, u8> = (0..=255)
        .zip(bpe::byte_chars())
        .map(|(b, c)| (c, b))
        .collect();
    let mut table = vec![Vec::new(); vocab_size];
    for (token, &id) in vocab {
        let bytes_of_token: Option<Vec<u8>> =
            token.chars().map(|c| bytes.get(&c).copied()).collect();
        table[id as usize] = bytes_of_token.unwrap_or_else(|| token.as_bytes().to_vec());
    }
    table
}

pub(super) fn tiktoken_json(core: &CoreBPE, builtin: Builtin, vocab_size: usize) -> Vec<u8> {
    const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let tokens: Vec<Vec<u8>> = (0..vocab_size as u32)
        .map(|id| core.decode_bytes(&[id]).unwrap_or_default())
        .collect();
    let mut special: Vec<u32> = core
        .special_tokens()
        .into_iter()
        .flat_map(|name| core.encode_with_special_tokens(name))
        .collect();
    special.sort_unstable();
    let ranks: HashMap<&[u8], u32> = (0..)
        .zip(&tokens)
        .filter(|(id, bytes)| !bytes.is_empty() && !special.contains(id))
        .map(|(id, bytes)| (bytes.as_slice(), id))
        .collect();
    let mut ordered: Vec<_> = ranks.iter().map(|(&bytes, &id)| (id, bytes)).collect();
    ordered.sort_unstable();
    let merges: Vec<_> = ordered
        .into_iter()
        .filter_map(|(id, bytes)| last_merge(bytes, id, &ranks))
        .collect();
    let split = match builtin {
        Builtin::Cl100k => PreTokenizer::Pattern(CL100K),
        _ => PreTokenizer::Gpt2,
    };
    bpe::tokenizer_json(&tokens, &merges, &special, split).into_bytes()
}

/// Returns the two tokens of rank below `rank` whose merge yields `bytes`.
fn last_merge(bytes: &[u8], rank: u32, ranks: &HashMap<&[u8], u32>) -> Option<(u32, u32)> {
    let mut cuts: Vec<usize> = (0..=bytes.len()).collect();
    while cuts.len() > 3 {
        let (_, at) = (0..cuts.len() - 2)
            .filter_map(|i| Some((*ranks.get(&bytes[cuts[i]..cuts[i + 2]])?, i + 1)))
            .filter(|&(merged, _)| merged < rank)
            .min()?;
        cuts.remove(at);
    }
    match *cuts {
        [a, b, c] => Some((*ranks.get(&bytes[a..b])?, *ranks.get(&bytes[b..c])?)),
        _ => None,
    }
}

/// Returns the first line of a parser's message, with words instead of Rust type names.
pub(super) fn parser_message(error: &dyn std::error::Error) -> String {
    let message = error.to_string();
    let words = message.lines().next().unwrap_or_default().split(' ');
    let words = words.map(|word| match word {
        "usize" | "u64" | "u32" | "u16" | "u8" => "a non-negative integer",
        "isize" | "i64" | "i32" => "an integer",
        "f64" | "f32" => "a number",
        "struct" | "enum" | "variant" | "tuple" => "part",
        word => word,
    });
    words.collect::<Vec<_>>().join(" ")
}
