//! Bytes of text that evaluated tokens represent, for bits per byte.

use super::evaluation::SetLoss;
use super::sets::{EvalOptions, EvalSet};
use crate::data::{Tokenizer, Windows};

/// Returns the bytes of text that the evaluated tokens represent, or the reason why they are not known.
pub(super) fn evaluated_bytes(set: &EvalSet, options: &EvalOptions) -> Result<u64, String> {
    let Some(tokenizer) = &set.tokenizer else {
        return Err("the tokenizer of the data is not known".into());
    };
    let bytes = match tokenizer.inexact_text_bytes_reason() {
        Some(reason) => bytes_of_text(set, options, reason)?,
        None => bytes_of_tokens(set, options, tokenizer)?,
    };
    match bytes {
        0 => Err("the evaluated tokens represent no text".into()),
        bytes => Ok(bytes),
    }
}

/// Returns the bytes that the evaluated tokens represent, if the bytes of each token are known.
fn bytes_of_tokens(
    set: &EvalSet,
    options: &EvalOptions,
    tokenizer: &Tokenizer,
) -> Result<u64, String> {
    let of_token = |id: u32| {
        let length = tokenizer.token_text_bytes(id);
        length.ok_or_else(|| format!("token id {id} is not in the vocabulary of the tokenizer"))
    };
    if let (Some(bytes), Windows::All) = (set.text_bytes, options.windows) {
        let firsts = set.data.first_tokens().map_err(|error| error.to_string())?;
        let first_token_bytes: u64 = firsts.into_iter().map(of_token).sum::<Result<_, _>>()?;
        return Ok(bytes.saturating_sub(first_token_bytes));
    }
    let mut bytes = 0;
    for batch in set.data.windows(64, options.windows) {
        for &id in &batch.map_err(|error| error.to_string())?.targets {
            bytes += of_token(id as u32)?;
        }
    }
    Ok(bytes)
}

/// Returns the bytes that the evaluated tokens represent if `reason` prevents counting them per token: the bytes of the
/// whole text minus those of the first tokens, if all of it is evaluated.
fn bytes_of_text(set: &EvalSet, options: &EvalOptions, reason: &str) -> Result<u64, String> {
    let Some(bytes) = set.text_bytes else {
        return Err(format!(
            "{reason}; give the raw text or a prepared folder, whose bytes are recorded"
        ));
    };
    let all = set.data.coverage(Windows::All).tokens;
    if set.data.coverage(options.windows).tokens != all {
        return Err(format!(
            "{reason}; evaluate all windows to get bits per byte"
        ));
    }
    match set.first_token_bytes {
        Some(first_token_bytes) => Ok(bytes.saturating_sub(first_token_bytes)),
        None => Err(format!(
            "{reason}, and the bytes of the first token are not known: it ends within a character, or the folder was \
             prepared by an earlier version"
        )),
    }
}

/// Returns the reasons why all sets together have no bits per byte.
pub(super) fn no_bits_per_byte(sets: &[SetLoss]) -> Option<String> {
    let reason = |set: &SetLoss| {
        let why = set.measured.bits_per_byte_missing_reason.as_ref()?;
        Some(match sets {
            [_] => why.clone(),
            _ => format!("{}: {why}", set.name),
        })
    };
    let reasons: Vec<String> = sets.iter().filter_map(reason).collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}
