//! Overlapping windows: every target once, with as much context as the model's sequence length allows.

use super::dataset::TokenDataset;
use super::windows::Part;
use crate::error::{Error, Result};

/// Window of a stream: inputs, and as many targets, of which -1 marks those of earlier windows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlidingWindow {
    /// Input tokens.
    pub inputs: Vec<i32>,
    /// Target tokens, or -1.
    pub targets: Vec<i32>,
    /// Number of targets that are not -1.
    pub scored: u64,
}

impl TokenDataset {
    /// Iterates over windows of [`TokenDataset::seq_len`] inputs (fewer if a stream or row is shorter) that advance by
    /// `stride` tokens. The first window of a stream has all its targets, each later one only the last `stride`, the
    /// last one those that remain; so every token except the first of each stream is a target once.
    ///
    /// # Errors
    /// If `stride` is 0 or larger than the sequence length.
    ///
    /// ```
    /// use hybridnorm::data::TokenDataset;
    ///
    /// let dataset = TokenDataset::from_tokens(&[0, 1, 2, 3, 4, 5, 6], 4, 7)?;
    /// let windows = dataset.sliding_windows(2)?.collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(windows[0].targets, [1, 2, 3, 4]);
    /// assert_eq!(windows[1].inputs, [2, 3, 4, 5]);
    /// assert_eq!(windows[1].targets, [-1, -1, 5, 6]);
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn sliding_windows(
        &self,
        stride: usize,
    ) -> Result<impl Iterator<Item = Result<SlidingWindow>> + '_> {
        let seq_len = self.seq_len();
        if stride == 0 || stride > seq_len {
            let expected = format!("at least 1 and at most {seq_len}, the sequence length");
            return Err(Error::out_of_range("stride", stride, expected));
        }
        let streams = self.parts.iter().flat_map(|part| {
            let first = move |stream| (part, stream * part.full.stream_stride);
            (0..part.streams).map(first)
        });
        let (seq_len, stride) = (seq_len as u64, stride as u64);
        Ok(streams.flat_map(move |(part, start)| {
            let targets = (part.full.stream_stride).saturating_sub(1);
            let first = seq_len.min(targets);
            let later = (targets - first).div_ceil(stride);
            (0..later + u64::from(first > 0)).map(move |index| {
                let end = (first + index * stride).min(targets);
                let scored = match index {
                    0 => first,
                    _ => end - (first + (index - 1) * stride),
                };
                read(part, start + end - first, first, scored)
            })
        }))
    }
}

/// Reads the window of `len` inputs from position `at` on, whose last `scored` targets are scored.
fn read(part: &Part, at: u64, len: u64, scored: u64) -> Result<SlidingWindow> {
    let mut tokens = vec![0; len as usize + 1];
    part.tokens.read(at, &mut tokens)?;
    // A token stream only returns ids below 2^31.
    let signed = |&token: &u32| token as i32;
    let inputs = tokens[..len as usize].iter().map(signed).collect();
    let mut targets: Vec<i32> = tokens[1..].iter().map(signed).collect();
    targets[..(len - scored) as usize].fill(-1);
    Ok(SlidingWindow {
        inputs,
        targets,
        scored,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_after_the_first_is_a_target_once() {
        for (count, seq_len, stride) in [
            (1, 4, 2),
            (2, 4, 1),
            (5, 4, 4),
            (23, 4, 3),
            (24, 8, 1),
            (24, 5, 5),
        ] {
            let tokens: Vec<u32> = (0..count).collect();
            let dataset = TokenDataset::from_tokens(&tokens, seq_len, 64).unwrap();
            let windows = dataset.sliding_windows(stride).unwrap();
            let windows: Vec<SlidingWindow> = windows.collect::<Result<_>>().unwrap();
            let targets = windows.iter().flat_map(|window| window.targets.clone());
            let targets: Vec<i32> = targets.filter(|&target| target >= 0).collect();
            let expected: Vec<i32> = (1..count as i32).collect();
            assert_eq!(targets, expected, "{count} {seq_len} {stride}");
            let scored: u64 = windows.iter().map(|window| window.scored).sum();
            assert_eq!(scored, expected.len() as u64);
            // Inputs precede their targets.
            for window in &windows {
                assert_eq!(window.inputs.len(), seq_len.min(count as usize - 1));
                for (input, target) in window.inputs.iter().zip(&window.targets) {
                    assert!(*target == -1 || *target == input + 1);
                }
            }
        }
    }

    #[test]
    fn strides_beyond_the_window_are_rejected() {
        let dataset = TokenDataset::from_tokens(&[1, 2, 3], 2, 4).unwrap();
        assert!(dataset.sliding_windows(0).is_err());
        assert!(dataset.sliding_windows(3).is_err());
    }
}
